//! Image archives: layers, configuration and a manifest in one tar file.
//!
//! The bytes depend only on the recipe: entries are sorted and carry no time.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aws_lc_rs::digest::{Context, SHA256};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::digest;
use crate::state::cache_dir;

/// The domain of every image that a sandbox makes; no registry answers for it.
pub const DOMAIN: &str = "peristyle.local";

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: &'static str,
    pub layers: Vec<Layer>,
    pub entrypoint: Vec<&'static str>,
    pub command: Vec<&'static str>,
    /// Numeric user and group; numeric because Kubernetes cannot tell
    /// whether a name is root.
    pub user: &'static str,
    /// Whether the archive is removed after the import.
    pub transient: bool,
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A tar file that exists. `identity` stands for its content.
    Archive { path: PathBuf, identity: String },
    /// Files and directories, with parents, owned by root.
    Entries(Vec<Entry>),
}

/// A file or directory of a layer.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path in the image, without the leading slash.
    pub path: &'static str,
    pub mode: u32,
    pub content: Content,
}

/// What an [`Entry`] holds.
#[derive(Clone, Debug)]
pub enum Content {
    Directory,
    Text(String),
    Link(&'static str),
    /// A file of this machine. `identity` stands for its content.
    File {
        path: PathBuf,
        identity: String,
    },
}

impl Recipe {
    /// `peristyle.local/NAME:HASH`. The hash covers the layers and the configuration.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{DOMAIN}/{}:{}", self.name, self.fingerprint())
    }

    fn fingerprint(&self) -> String {
        let layers: Vec<_> = self.layers.iter().map(Layer::identity).collect();
        let parts = json!([layers, self.entrypoint, self.command, self.user]);
        digest(parts.to_string().as_bytes())[..12].to_owned()
    }

    /// Writes the archive unless it is cached, and returns its path.
    ///
    /// # Errors
    /// When a source cannot be read or the archive cannot be written.
    pub fn archive(&self) -> Result<PathBuf> {
        let dir = cache_dir("images")?;
        let path = dir.join(format!("{}-{}.tar", self.name, self.fingerprint()));
        if !path.exists() {
            let unfinished = tempfile::NamedTempFile::new_in(&dir)?;
            self.write(unfinished.as_file()).with_context(|| format!("cannot write image {}", self.name))?;
            unfinished.persist(&path)?;
        }
        Ok(path)
    }

    fn write(&self, output: impl Write) -> Result<()> {
        let mut archive = Builder::new(output);
        let mut diff_ids = Vec::new();
        for layer in &self.layers {
            let (mut file, digest) = layer.open()?;
            let mut header = header(EntryType::Regular, 0o644);
            header.set_size(file.metadata()?.len());
            archive.append_data(&mut header, format!("{digest}.tar"), &mut file)?;
            diff_ids.push(digest);
        }
        let layers: Vec<_> = diff_ids.iter().map(|digest| format!("{digest}.tar")).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "User": self.user,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids.iter().map(|digest| format!("sha256:{digest}")).collect::<Vec<_>>(),
            },
        })
        .to_string();
        let config_name = format!("{}.json", digest(config.as_bytes()));
        append(&mut archive, &config_name, config.as_bytes())?;
        let manifest = json!([{ "Config": config_name, "RepoTags": [self.reference()], "Layers": layers }]);
        append(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

impl Layer {
    fn identity(&self) -> String {
        match self {
            Self::Archive { identity, .. } => identity.clone(),
            Self::Entries(entries) => {
                let parts = entries.iter().map(|entry| match &entry.content {
                    Content::Directory => json!([entry.path, entry.mode, "directory"]),
                    Content::Text(text) => json!([entry.path, entry.mode, "text", text]),
                    Content::Link(target) => json!([entry.path, entry.mode, "link", target]),
                    Content::File { identity, .. } => json!([entry.path, entry.mode, "file", identity]),
                });
                digest(parts.map(|part| part.to_string()).collect::<String>().as_bytes())
            }
        }
    }

    /// The layer as a tar file at its start, and its digest.
    fn open(&self) -> Result<(File, String)> {
        let mut file = match self {
            Self::Archive { path, .. } => {
                File::open(path).with_context(|| format!("cannot read {}", path.display()))?
            }
            Self::Entries(entries) => {
                let mut file = tempfile::tempfile_in(cache_dir("images")?)?;
                write_entries(entries, &mut file)?;
                file
            }
        };
        file.rewind()?;
        let digest = file_digest(&mut file)?;
        file.rewind()?;
        Ok((file, digest))
    }
}

fn write_entries(entries: &[Entry], output: impl Write) -> Result<()> {
    let mut sorted: Vec<_> = entries.iter().collect();
    sorted.sort_by_key(|entry| entry.path);
    let mut archive = Builder::new(output);
    for Entry { path, mode, content } in sorted {
        match content {
            Content::Directory => {
                let mut header = header(EntryType::Directory, *mode);
                archive.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Content::Link(target) => {
                archive.append_link(&mut header(EntryType::Symlink, *mode), path, target)?;
            }
            Content::Text(text) => {
                let mut header = header(EntryType::Regular, *mode);
                header.set_size(text.len() as u64);
                archive.append_data(&mut header, path, text.as_bytes())?;
            }
            Content::File { path: source, .. } => {
                let file = File::open(source).with_context(|| format!("cannot read {}", source.display()))?;
                let mut header = header(EntryType::Regular, *mode);
                header.set_size(file.metadata()?.len());
                archive.append_data(&mut header, path, file)?;
            }
        }
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn append(archive: &mut Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = header(EntryType::Regular, 0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

/// A header without time and owner, so that equal content gives equal bytes.
fn header(kind: EntryType, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// SHA-256 of what is left to read of a file, in hexadecimal digits.
///
/// # Errors
/// When the file cannot be read.
pub fn file_digest(file: &mut File) -> io::Result<String> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(context.finish())),
            read => context.update(&buffer[..read]),
        }
    }
}

/// The content of a file of this machine, identified by its digest.
///
/// # Errors
/// When the file cannot be read.
pub fn hashed_file(path: &Path) -> Result<Content> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Content::File { path: fs::canonicalize(path)?, identity: file_digest(&mut file)? })
}

/// The name that Go and image configurations give to this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(text: &str) -> Recipe {
        let entry = |path, content| Entry { path, mode: 0o755, content };
        Recipe {
            name: "example",
            layers: vec![Layer::Entries(vec![
                entry("usr/bin/example", Content::Text(text.to_owned())),
                entry("usr", Content::Directory),
                entry("bin", Content::Link("usr/bin")),
            ])],
            entrypoint: vec!["/usr/bin/example"],
            command: vec![],
            user: "10001:10001",
            transient: false,
        }
    }

    fn bytes(recipe: &Recipe) -> Vec<u8> {
        let mut bytes = Vec::new();
        recipe.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_same_recipe_gives_the_same_bytes_and_name() {
        assert_eq!(bytes(&recipe("a")), bytes(&recipe("a")));
        assert_eq!(recipe("a").reference(), recipe("a").reference());
    }

    #[test]
    fn another_content_entrypoint_or_user_gives_another_name() {
        let base = recipe("a").reference();
        assert_ne!(base, recipe("b").reference());
        assert_ne!(base, Recipe { entrypoint: vec!["/x"], ..recipe("a") }.reference());
        assert_ne!(base, Recipe { user: "1:1", ..recipe("a") }.reference());
        assert!(base.starts_with("peristyle.local/example:"), "{base}");
    }

    #[test]
    fn the_manifest_names_layers_and_configuration_that_are_in_the_archive() {
        let bytes = bytes(&recipe("a"));
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut files = std::collections::BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let layer = manifest[0]["Layers"][0].as_str().unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&files[manifest[0]["Config"].as_str().unwrap()]).unwrap();
        let diff_id = format!("sha256:{}", digest(&files[layer]));
        assert_eq!(config["rootfs"]["diff_ids"][0], diff_id);
        assert_eq!(manifest[0]["RepoTags"][0], recipe("a").reference());
        let names: Vec<_> = tar::Archive::new(files[layer].as_slice())
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["bin", "usr/", "usr/bin/example"]);
    }
}
