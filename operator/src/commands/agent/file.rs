//! Replacing a file in one step: a reader sees the old content or the new.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::Context as _;

/// Replaces `file` by a file with `content`.
///
/// # Errors
/// When the directory cannot be written to.
pub fn write(file: &Path, content: &str) -> anyhow::Result<()> {
    let name = file.file_name().with_context(|| format!("--file {}: names no file", file.display()))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let temporary = file.with_file_name(hidden);
    let replace = || -> std::io::Result<()> {
        let mut out = File::create(&temporary)?;
        out.write_all(content.as_bytes())?;
        out.sync_all()?;
        fs::rename(&temporary, file)
    };
    replace().with_context(|| format!("failed to write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("rules.json");
        write(&file, "[]").unwrap();
        let mut reader = File::open(&file).unwrap();
        write(&file, "[1]").unwrap();
        let mut old = String::new();
        std::io::Read::read_to_string(&mut reader, &mut old).unwrap();
        assert_eq!(old, "[]", "an open reader keeps the old content");
        assert_eq!(fs::read_to_string(&file).unwrap(), "[1]");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = write(Path::new("/nowhere/at/all"), "").unwrap_err();
        assert!(format!("{error:#}").starts_with("failed to write /nowhere/at/all: "));
    }
}
