//! The images that do not come from this workspace.

use std::path::Path;

use anyhow::Result;

use super::archive::{Content, Entry, Layer, Recipe, hashed_file};
use super::rootfs;
use crate::progress::Progress;
use crate::substrate::{Component, Programs};

/// The user of every image that does not need one of its own.
pub const USER: &str = "10001:10001";

/// The image that keeps the namespaces of a pod.
///
/// # Errors
/// When busybox cannot be read.
pub fn pause() -> Result<Recipe> {
    let program = hashed_file(Path::new("/bin/busybox"))?;
    let layer = Layer::Entries(vec![
        directory("bin", 0o755),
        Entry { path: "bin/sleep", mode: 0o755, content: program },
    ]);
    Ok(Recipe {
        name: "pause",
        layers: vec![layer],
        entrypoint: vec!["/bin/sleep", "inf"],
        command: vec![],
        user: "65535:65535",
        transient: false,
    })
}

/// Every image that is made of built programs and Debian packages.
///
/// # Errors
/// When a root file system cannot be made or a file cannot be read.
pub async fn substrate(programs: &Programs, progress: &Progress) -> Result<Vec<Recipe>> {
    let (base, postgres) = tokio::try_join!(rootfs::BASE.layer(progress), rootfs::POSTGRES.layer(progress))?;
    let mut recipes = vec![
        pause()?,
        Recipe {
            name: "base",
            layers: vec![base, skeleton()?],
            entrypoint: vec![],
            command: vec![],
            user: USER,
            transient: false,
        },
        Recipe {
            name: "postgres",
            layers: vec![postgres],
            entrypoint: vec![],
            command: vec!["/usr/lib/postgresql/15/bin/postgres"],
            user: "100:102",
            transient: false,
        },
    ];
    for (component, program) in programs {
        recipes.extend(program_image(*component, program)?);
    }
    Ok(recipes)
}

/// The image of one statically linked program; none for those that no pod runs.
fn program_image(component: Component, program: &Path) -> Result<Option<Recipe>> {
    let (path, entrypoint) = match component {
        Component::Coredns => ("usr/local/bin/coredns", "/usr/local/bin/coredns"),
        Component::Traefik => ("usr/local/bin/traefik", "/usr/local/bin/traefik"),
        Component::Oathkeeper => ("usr/local/bin/oathkeeper", "/usr/local/bin/oathkeeper"),
        Component::Keto => ("usr/local/bin/keto", "/usr/local/bin/keto"),
        Component::Kubernetes | Component::Helm => return Ok(None),
    };
    // The file name ends in the hash of what the program was built from.
    let identity = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let content = Content::File { path: program.to_owned(), identity };
    Ok(Some(Recipe {
        name: component.name(),
        layers: vec![skeleton()?, program_layer(path, content)],
        entrypoint: vec![entrypoint],
        command: vec![],
        user: USER,
        transient: false,
    }))
}

/// A layer with one program in `/usr/local/bin`.
pub fn program_layer(path: &'static str, content: Content) -> Layer {
    Layer::Entries(vec![
        directory("usr", 0o755),
        directory("usr/local", 0o755),
        directory("usr/local/bin", 0o755),
        Entry { path, mode: 0o755, content },
    ])
}

/// What programs expect of any system: a user, `/tmp` and certificate authorities.
///
/// # Errors
/// When this machine's bundle of certificate authorities cannot be read.
pub fn skeleton() -> Result<Layer> {
    let text = |path, text: &str| Entry { path, mode: 0o644, content: Content::Text(text.to_owned()) };
    Ok(Layer::Entries(vec![
        directory("etc", 0o755),
        directory("etc/ssl", 0o755),
        directory("etc/ssl/certs", 0o755),
        directory("tmp", 0o1777),
        text(
            "etc/passwd",
            "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:10001:10001:nonroot:/tmp:/sbin/nologin\n",
        ),
        text("etc/group", "root:x:0:\nnonroot:x:10001:\n"),
        text("etc/nsswitch.conf", "hosts: files dns\n"),
        Entry {
            path: "etc/ssl/certs/ca-certificates.crt",
            mode: 0o644,
            content: hashed_file(Path::new("/etc/ssl/certs/ca-certificates.crt"))?,
        },
    ]))
}

fn directory(path: &'static str, mode: u32) -> Entry {
    Entry { path, mode, content: Content::Directory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_after_the_build_of_its_program() {
        let image =
            |file: &str| program_image(Component::Keto, Path::new(file)).unwrap().unwrap().reference();
        assert_eq!(image("/a/keto-0123"), image("/b/keto-0123"));
        assert_ne!(image("/a/keto-0123"), image("/a/keto-4567"));
    }

    #[test]
    fn programs_of_the_machine_itself_have_no_image() {
        assert!(program_image(Component::Kubernetes, Path::new("/a/kubernetes-1")).unwrap().is_none());
        assert!(program_image(Component::Helm, Path::new("/a/helm-1")).unwrap().is_none());
    }
}
