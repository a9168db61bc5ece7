//! The images of the sandbox, made without a container engine or a registry.
//!
//! An image is named after what it is made of, `peristyle.local/NAME:HASH`, so
//! that an unchanged one is neither written nor imported again.

pub mod archive;
pub mod catalog;
pub mod rootfs;
pub mod workspace;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{SHA256, digest as sha256};
use futures::{TryStreamExt, stream};
use tokio::process::Command;

use crate::command;
use crate::progress::Progress;
use crate::state::{Kind, State};
use crate::substrate::{self, Component};
use archive::Recipe;

/// References by name: `traefik` → `peristyle.local/traefik:0123456789ab`.
pub type References = BTreeMap<String, String>;

/// Unpacking is bound by the disk, so that more at a time gain nothing.
const IMPORTS_AT_A_TIME: usize = 3;

/// Makes every image, imports those that the sandbox does not have, and returns their references.
///
/// The binaries of the workspace are built first, with the development profile.
///
/// # Errors
/// When a build, an archive or an import fails, or the sandbox does not run.
pub async fn build_and_import(state: &State, progress: &Progress) -> Result<References> {
    match state.settings()?.filter(|settings| settings.ready).map(|settings| settings.cluster) {
        Some(Kind::Full { .. }) => {}
        Some(Kind::ControlPlane { .. }) => bail!("a control plane without node has no use for images"),
        Some(Kind::Existing { .. }) => bail!(
            "this cluster was not made by the sandbox: build images/Containerfile.* and push the images to its registry"
        ),
        None => bail!("no sandbox is up in {}: run `cargo sandbox up`", state.dir().display()),
    }
    let programs = substrate::build(&Component::ALL, progress).await?;
    let mut recipes = catalog::substrate(&programs, progress).await?;
    recipes.extend(workspace::recipes(progress).await?);
    import(state, &recipes, progress).await
}

/// Writes the archives of `recipes` and imports those that containerd lacks.
///
/// # Errors
/// When an archive cannot be written or an import fails.
pub async fn import(state: &State, recipes: &[Recipe], progress: &Progress) -> Result<References> {
    let listed = command::output(ctr(state).args(["images", "list", "--quiet"])).await.context(
        "cannot ask the sandbox's containerd for its images: is the sandbox up? (`cargo sandbox up`)",
    )?;
    let present: BTreeSet<&str> = listed.lines().collect();
    let missing: Vec<_> = recipes.iter().filter(|r| !present.contains(r.reference().as_str())).collect();
    stream::iter(missing.into_iter().map(anyhow::Ok))
        .try_for_each_concurrent(IMPORTS_AT_A_TIME, |recipe| async move {
            progress.step(&format!("image {}", recipe.name), import_one(state, recipe)).await
        })
        .await?;
    Ok(recipes.iter().map(|recipe| (recipe.name.to_owned(), recipe.reference())).collect())
}

async fn import_one(state: &State, recipe: &Recipe) -> Result<()> {
    let owned = recipe.clone();
    let archive = tokio::task::spawn_blocking(move || owned.archive()).await??;
    command::output(ctr(state).args(["images", "import"]).arg(&archive)).await?;
    if recipe.transient {
        // Everything else is made of what is cached anyway; an archive per
        // build of the workspace would fill the disk.
        std::fs::remove_file(&archive)?;
    }
    Ok(())
}

fn ctr(state: &State) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(state.path("containerd.sock")).args(["--namespace", "k8s.io"]);
    ctr
}

/// SHA-256 in hexadecimal digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    hex::encode(sha256(&SHA256, bytes))
}
