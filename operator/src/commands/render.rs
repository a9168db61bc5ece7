//! `peristyle render`: what the operator would create, without a cluster.
//!
//! Everything that the objects refer to is taken to exist and to be ready, and
//! every policy to be live. What only a cluster knows is left out: owner
//! references, addresses of pods, passwords. So of the Secrets of Databases
//! only the names are printed, as comments.

pub mod assume;
pub mod credentials;
pub mod input;
pub mod policies;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use kube::ResourceExt;
use peristyle_crds::{names::SERVICE_LABEL, v1alpha1::Service};
use serde_json::Value;

use self::input::Input;
use crate::{
    controllers::service::{
        build, route,
        validate::{self, Invalid},
    },
    metadata::Owner,
};

/// Settings of `peristyle render`.
#[derive(Args, Clone, Debug)]
pub struct Render {
    /// File or directory with objects as YAML; may be given several times.
    #[arg(short = 'f', long = "filename", required = true)]
    pub files: Vec<PathBuf>,

    /// Namespace of objects that name none.
    #[arg(short = 'n', long, default_value = "default")]
    pub namespace: String,

    /// Pods of a Service that does not say how many.
    #[arg(long, env = "PERISTYLE_DEFAULT_REPLICAS", default_value_t = 2, value_parser = clap::value_parser!(i32).range(0..=1000))]
    pub default_replicas: i32,
}

/// Prints the children of every object as YAML documents; what is wrong with
/// a route or a policy goes to standard error.
///
/// # Errors
/// When a file cannot be read, is no YAML of ours, or a spec contradicts itself.
pub fn run(settings: &Render) -> anyhow::Result<()> {
    let mut input = Input::default();
    for path in &settings.files {
        for file in yaml_files(path)? {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("failed to read {}", file.display()))?;
            input.add(&text, &settings.namespace).with_context(|| format!("{}", file.display()))?;
        }
    }
    for problem in print(&input, settings.default_replicas, &mut std::io::stdout().lock())? {
        eprintln!("peristyle: {problem}");
    }
    Ok(())
}

/// Writes the children of all objects as YAML documents, Secrets as comments
/// before the first. Returns what is wrong with routes and policies.
///
/// # Errors
/// When a spec contradicts itself, or `out` cannot be written.
pub fn print(input: &Input, default_replicas: i32, out: &mut impl Write) -> anyhow::Result<Vec<String>> {
    for database in &input.databases {
        let lines = credentials::lines(input, database);
        for line in lines.with_context(|| format!("Database {}", database.name_any()))? {
            writeln!(out, "# {line}")?;
        }
    }
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    for service in &input.services {
        let name = format!("Service {}", service.name_any());
        let rendered = render(input, service, default_replicas).with_context(|| name.clone())?;
        problems.extend(rendered.problems.into_iter().map(|problem| format!("{name}: {problem}")));
        documents.extend(rendered.objects);
    }
    let published = policies::render(input)?;
    problems.extend(published.problems);
    documents.extend(published.objects);
    for document in documents {
        write!(out, "---\n{}", serde_saphyr::to_string(&document)?)?;
    }
    Ok(problems)
}

/// The file itself, or the YAML files directly in the directory, by name.
fn yaml_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("failed to read {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry?.path();
        let extension = file.extension().and_then(|e| e.to_str());
        if file.is_file() && matches!(extension, Some("yaml" | "yml")) {
            files.push(file);
        }
    }
    files.sort();
    anyhow::ensure!(
        !files.is_empty(),
        "{} holds no .yaml or .yml file; name a file or another directory",
        path.display()
    );
    Ok(files)
}

/// Why a Service cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec contradicts itself.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A child cannot be written as JSON; a bug.
    #[error("failed to encode a child")]
    Encode(#[from] serde_json::Error),
}

/// Children.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// Children in the order in which they are applied, without owner references.
    pub objects: Vec<Value>,
    /// What is wrong with routes or policies, and what is odd in the spec.
    pub problems: Vec<String>,
}

/// Renders one Service by the same functions as the operator.
///
/// # Errors
/// When the spec contradicts itself.
pub fn render(input: &Input, service: &Service, default_replicas: i32) -> Result<Rendered, Error> {
    let owner = Owner::new(service, &service.namespace().unwrap_or_default(), SERVICE_LABEL);
    let observed = assume::observed(input, service, default_replicas);
    let routes = route::routes(service, &observed);
    let validated = validate::validate(service, &observed)?;
    let edge = build::edge(&owner, &routes);
    let desired = build::build(&owner, service, &validated, edge, observed.edge_errors.as_ref(), None);
    let objects = desired.objects()?.into_iter().map(|(_, object)| without_owner(object));
    let odd = validated.problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.message));
    Ok(Rendered {
        objects: objects.collect(),
        problems: routes.problems.into_iter().map(|problem| problem.message).chain(odd).collect(),
    })
}

/// An object that was never in a cluster has no UID to refer to.
fn without_owner(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("ownerReferences");
    }
    object
}
