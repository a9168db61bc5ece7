//! `peristyle render`: what the operator would create, without a cluster.
//!
//! Everything that the objects refer to is taken to exist and to be ready, and
//! every policy to be live. What only a cluster knows is left out: owner
//! references, addresses of pods, passwords. So the Secrets of Databases are
//! not printed at all: one without its password, applied, would take away the
//! credentials of a running workload.

pub mod assume;
pub mod input;

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
/// a route goes to standard error.
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
    let mut out = std::io::stdout().lock();
    for service in &input.services {
        let rendered = render(&input, service, settings.default_replicas)
            .with_context(|| format!("Service {}", service.name_any()))?;
        for problem in rendered.problems {
            eprintln!("peristyle: Service {}: {problem}", service.name_any());
        }
        for object in rendered.objects {
            write!(out, "---\n{}", serde_saphyr::to_string(&object)?)?;
        }
    }
    Ok(())
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

/// The children of one Service.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    /// Children in the order in which they are applied, without owner references.
    pub objects: Vec<Value>,
    /// What is wrong with routes, and what is odd in the spec.
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
    let objects = desired.objects()?.into_iter().map(|(_, mut object)| {
        // An object that was never in a cluster has no UID to refer to.
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("ownerReferences");
        }
        object
    });
    let odd = validated.problems.into_iter().map(|problem| format!("{}: {}", problem.field, problem.message));
    Ok(Rendered {
        objects: objects.collect(),
        problems: routes.problems.into_iter().map(|problem| problem.message).chain(odd).collect(),
    })
}
