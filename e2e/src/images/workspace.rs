//! The images of this workspace's own binaries.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use tokio::process::Command;

use super::archive::{Recipe, hashed_file};
use super::catalog::{USER, program_layer, skeleton};
use super::rootfs;
use crate::command;
use crate::progress::Progress;

/// Builds the binaries of operator and workloads and describes their images.
///
/// # Errors
/// When a build fails or a binary cannot be read.
pub async fn recipes(progress: &Progress) -> Result<Vec<Recipe>> {
    let base = rootfs::BASE.layer(progress).await?;
    let binaries = progress.step("build operator and workloads", build()).await?;
    let mut recipes = Vec::new();
    for (name, path, entrypoint) in [
        ("peristyle", "usr/local/bin/peristyle", "/usr/local/bin/peristyle"),
        ("suite", "usr/local/bin/suite", "/usr/local/bin/suite"),
    ] {
        let Some(binary) = binaries.get(name) else {
            progress.say(&format!("the workspace has no binary {name}: there is no image of it"));
            continue;
        };
        recipes.push(Recipe {
            name,
            layers: vec![base.clone(), skeleton()?, program_layer(path, hashed_file(binary)?)],
            entrypoint: vec![entrypoint],
            command: vec![],
            user: USER,
            transient: true,
        });
    }
    Ok(recipes)
}

/// Builds every binary of the workspace; paths by name. The development
/// profile, because tests and checks have built most of it already.
///
/// # Errors
/// When the build fails.
pub async fn build() -> Result<BTreeMap<String, PathBuf>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let messages = command::output(
        Command::new(cargo)
            .current_dir(crate::workspace())
            // Packages built alone would have other features, and all their
            // dependencies would be compiled again.
            .args(["build", "--workspace", "--bins", "--message-format", "json-render-diagnostics"]),
    )
    .await
    .context("cannot build the workspace")?;
    Ok(executables(&messages))
}

#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Binaries by name, from cargo's messages.
fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages.filter_map(|message| Some((message.target?.name, message.executable?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_artifacts_with_an_executable_are_binaries() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"peristyle"},"executable":"/t/peristyle"}
{"reason":"compiler-artifact","target":{"name":"platform"},"executable":null}
{"reason":"build-finished","success":true}"#;
        let binaries = executables(messages);
        assert_eq!(
            binaries.into_iter().collect::<Vec<_>>(),
            [("peristyle".to_owned(), "/t/peristyle".into())]
        );
    }
}
