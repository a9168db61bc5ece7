//! Programs that run to their end, with errors that show what they said.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// How many lines of a log an error shows.
const SHOWN_LINES: usize = 15;

/// Runs `command` and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the error shows its standard error.
pub async fn output(command: &mut Command) -> Result<String> {
    output_with_input(command, None).await
}

/// [`output`] with text on the standard input.
///
/// # Errors
/// When it cannot be started or fails; the error shows its standard error.
pub async fn output_with_input(command: &mut Command, input: Option<&str>) -> Result<String> {
    let shown = describe(command);
    command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
    if let (Some(mut stdin), Some(text)) = (child.stdin.take(), input) {
        // A program that ends before it has read everything reports why itself.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let output = child.wait_with_output().await.with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` ended with {}:\n{}", output.status, last_lines(&said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with its output in `log`.
///
/// # Errors
/// When it cannot be started or fails; the error shows the end of the log.
pub async fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let shown = describe(command);
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.kill_on_drop(true).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = command.status().await.with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}; the end of {}:\n{}", log.display(), tail(log));
    }
    Ok(())
}

/// The last lines of a log file, indented for an error message.
#[must_use]
pub fn tail(log: &Path) -> String {
    match fs::read(log) {
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("    (no log: {error})"),
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    shown.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn describe(command: &Command) -> String {
    let command = command.as_std();
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(name).chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_program_is_named_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo nonsense >&2; exit 3"])).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("nonsense"), "{text}");
    }

    #[tokio::test]
    async fn input_reaches_the_program() {
        assert_eq!(output_with_input(&mut Command::new("cat"), Some("text")).await.unwrap(), "text");
    }

    #[tokio::test]
    async fn a_failed_logged_program_shows_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("logs/x.log");
        let mut command = Command::new("sh");
        command.args(["-c", "seq 100; exit 1"]);
        let text = logged(&mut command, &log).await.unwrap_err().to_string();
        assert!(text.contains("    100") && !text.contains("    50\n"), "{text}");
    }
}
