//! The component beside the agent, and whether it has loaded a file.

use std::collections::BTreeSet;

use clap::ValueEnum;
use serde::Deserialize;

use crate::{
    auth::model,
    external::{keto::Keto, oathkeeper::Oathkeeper},
};

/// What runs beside the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Kind {
    /// ORY Oathkeeper; the file holds its rules.
    Oathkeeper,
    /// ORY Keto; the file holds its namespaces.
    Keto,
}

impl Kind {
    /// Content of a file that grants nothing. Keto would drop every namespace
    /// of an empty file.
    pub fn initial(self) -> String {
        match self {
            Self::Oathkeeper => "[]".to_owned(),
            Self::Keto => model::file([]).0.text,
        }
    }
}

/// A component at its address.
pub enum Component {
    /// Oathkeeper's API port.
    Oathkeeper(Oathkeeper, String),
    /// Keto's read port.
    Keto(Keto, String),
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

impl Component {
    /// The component of `kind` at `base`, by default on this host.
    pub fn new(kind: Kind, base: Option<&str>, client: reqwest::Client) -> Self {
        let base = |default: &str| base.unwrap_or(default).trim_end_matches('/').to_owned();
        match kind {
            Kind::Oathkeeper => Self::Oathkeeper(Oathkeeper::new(client), base("http://127.0.0.1:4456")),
            Kind::Keto => Self::Keto(Keto::new(client), base("http://127.0.0.1:4466")),
        }
    }

    /// Whether the component has loaded `content` and nothing else; what is
    /// missing if not.
    pub async fn has_loaded(&self, content: &str) -> Result<(), String> {
        let (wanted, loaded) = match self {
            Self::Oathkeeper(client, base) => {
                let rules: Vec<Listed> = serde_json::from_str(content)
                    .map_err(|error| format!("the rules are no JSON: {error}"))?;
                let wanted: BTreeSet<String> = rules.into_iter().map(|rule| rule.id).collect();
                (wanted, client.rules(base).await)
            }
            Self::Keto(client, base) => {
                let model = model::parse(content).map_err(|error| format!("the namespaces: {error}"))?;
                (model.classes.into_keys().collect(), client.namespaces(base).await)
            }
        };
        let loaded = loaded.map_err(|error| error.to_string())?;
        if loaded == wanted {
            return Ok(());
        }
        let missing = wanted.difference(&loaded).count();
        let retired = loaded.difference(&wanted).count();
        Err(format!("{missing} not loaded yet, {retired} to be removed"))
    }
}
