//! What keeps a pod from running.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus};
use kube::ResourceExt;
use peristyle_crds::condition::Reason;
use regex::Regex;
use serde_json::Value;

use crate::stores::views::Pod;

/// Longest part of a log line that reaches a status.
const LINE: usize = 200;

/// How bad it is; the worst first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Weight {
    /// Something failed.
    Failure,
    /// Something is missing that may come by itself.
    Waiting,
}

/// What keeps a pod from running.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cause {
    /// How bad it is.
    pub weight: Weight,
    /// The word for it.
    pub reason: Reason,
    /// The pod and what happened to it.
    pub text: String,
}

/// The worst cause of all, the same one whatever the order of the pods.
#[must_use]
pub fn worst(pods: &[&Pod]) -> Option<Cause> {
    let causes = pods.iter().filter_map(|pod| cause(pod));
    causes.min_by(|one, two| (one.weight, &one.text).cmp(&(two.weight, &two.text)))
}

/// The first pod by name that runs and does not pass its readiness check.
#[must_use]
pub fn not_ready(pods: &[&Pod]) -> Option<String> {
    let is_running = |status: &ContainerStatus| {
        !status.ready && status.state.as_ref().is_some_and(|state| state.running.is_some())
    };
    let statuses = |pod: &Pod| pod.status.clone().unwrap_or_default().container_statuses.unwrap_or_default();
    let found = pods.iter().filter(|pod| statuses(pod).iter().any(is_running));
    let name = found.map(|pod| pod.name_any()).min()?;
    Some(format!("{name}: runs and does not pass its readiness check"))
}

/// How the last pod of a failed Job ended, with the last line that it wrote.
#[must_use]
pub fn of_job(pods: &[&Pod]) -> Option<String> {
    let latest =
        pods.iter().max_by_key(|pod| (pod.creation_timestamp().map(|time| time.0), pod.name_any()))?;
    let name = latest.name_any();
    let statuses = latest.status.as_ref()?.container_statuses.as_ref()?;
    let ended = statuses.iter().find_map(|status| status.state.as_ref()?.terminated.as_ref());
    let Some(ended) = ended.filter(|ended| ended.exit_code != 0) else {
        return cause(latest).map(|cause| cause.text);
    };
    let how = match ended.reason.as_deref() {
        Some("OOMKilled") => "OOMKilled".to_owned(),
        _ => format!("exit {}", ended.exit_code),
    };
    let said = ended.message.as_deref().and_then(last_line);
    Some(match said {
        Some(line) => format!("{name}: {how}: {line}"),
        None => format!("{name}: {how}"),
    })
}

fn cause(pod: &Pod) -> Option<Cause> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let containers = init.chain(status.container_statuses.iter().flatten());
    let of_container = containers.filter_map(container).min_by_key(|(weight, _, _)| *weight);
    let unschedulable = || {
        let conditions = status.conditions.iter().flatten();
        let mut scheduled = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "False");
        let found = scheduled.find(|c| c.reason.as_deref() == Some("Unschedulable"))?;
        let why = found.message.as_deref().unwrap_or_default();
        Some((Weight::Waiting, Reason::Unschedulable, format!("Unschedulable: {why}")))
    };
    let (weight, reason, text) = of_container.or_else(unschedulable)?;
    Some(Cause { weight, reason, text: format!("{}: {text}", pod.name_any()) })
}

fn container(status: &ContainerStatus) -> Option<(Weight, Reason, String)> {
    if status.ready {
        return None;
    }
    let state = status.state.clone().unwrap_or_default();
    if let Some(waiting) = &state.waiting {
        let word = waiting.reason.as_deref().unwrap_or_default();
        let why = waiting.message.as_deref().unwrap_or_default();
        match word {
            // The two alternate while the kubelet tries again, with messages of their own.
            "ErrImagePull" | "ImagePullBackOff" => {
                let text = format!("ImagePullBackOff (image {})", status.image);
                return Some((Weight::Failure, Reason::ImagePullBackOff, text));
            }
            "ErrImageNeverPull" | "InvalidImageName" => {
                let text = format!("{word} (image {})", status.image);
                return Some((Weight::Failure, Reason::ImagePullBackOff, text));
            }
            "CreateContainerConfigError" => {
                let text = format!("{word}: {why}");
                return Some((Weight::Waiting, Reason::CreateContainerConfigError, text));
            }
            // Their messages hold identifiers of containers that differ at every try.
            "CreateContainerError" | "RunContainerError" | "StartError" => {
                return Some((Weight::Failure, Reason::ContainerFailed, word.to_owned()));
            }
            _ => {}
        }
    }
    // Between two starts the state alternates; what ended the last one does not.
    let last = status.last_state.clone().unwrap_or_default();
    // Only what is started again must not end, not even well: a hook is done then.
    let counts = |ended: &ContainerStateTerminated| ended.exit_code != 0 || status.restart_count > 0;
    let (reason, ended) = exit(&state.terminated.filter(counts).or(last.terminated.filter(counts))?);
    let restarts = match status.restart_count {
        0 => return Some((Weight::Failure, reason, format!("Terminated ({ended})"))),
        1 => "1 restart".to_owned(),
        n => format!("{n} restarts"),
    };
    if reason == Reason::OOMKilled {
        return Some((Weight::Failure, reason, format!("{ended}, {restarts}")));
    }
    let text = format!("CrashLoopBackOff ({ended}), {restarts}");
    Some((Weight::Failure, Reason::CrashLoopBackOff, text))
}

fn exit(ended: &ContainerStateTerminated) -> (Reason, String) {
    match ended.reason.as_deref() {
        Some("OOMKilled") => (Reason::OOMKilled, "OOMKilled".to_owned()),
        _ => (Reason::ContainerFailed, format!("exit {}", ended.exit_code)),
    }
}

/// The last line of a log, as short as a status wants it and without passwords of URLs.
fn last_line(log: &str) -> Option<String> {
    static PASSWORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(://[^\s:/@]*):[^\s@]*@").ok());
    let line = log.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let line = plain(line).unwrap_or_else(|| line.to_owned());
    let line = PASSWORD.as_ref()?.replace_all(&line, "$1:…@");
    let printable = line.chars().filter(|c| !c.is_control());
    Some(printable.take(LINE).collect())
}

/// The words of a line of a structured log, without its time stamp.
fn plain(line: &str) -> Option<String> {
    let record: Value = serde_json::from_str(line).ok()?;
    let fields = record.get("fields").unwrap_or(&record);
    let text = |keys: &[&str]| {
        let found = keys.iter().find_map(|key| fields.get(key)?.as_str());
        found.map(ToOwned::to_owned)
    };
    let message = text(&["message", "msg"])?;
    Some(match text(&["error", "err"]) {
        Some(error) => format!("{message}: {error}"),
        None => message,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::last_of_several("starting\nno such table\n\n", "no such table")]
    #[case::structured(
        r#"{"timestamp":"2026-01-01T00:00:00Z","level":"ERROR","fields":{"message":"migration failed","error":"no such table"}}"#,
        "migration failed: no such table"
    )]
    #[case::other_json(r#"{"a":1}"#, r#"{"a":1}"#)]
    #[case::password("cannot reach postgres://o_w:p:w@db:5432/o", "cannot reach postgres://o_w:…@db:5432/o")]
    #[case::control("\u{1b}[31mred", "[31mred")]
    fn the_last_line_of_a_log_is_short_and_holds_no_password(#[case] log: &str, #[case] line: &str) {
        assert_eq!(last_line(log).as_deref(), Some(line));
    }

    #[test]
    fn an_empty_log_says_nothing_and_a_long_line_is_cut() {
        assert_eq!(last_line(" \n"), None);
        assert_eq!(last_line(&"ä".repeat(1000)).unwrap().chars().count(), LINE);
    }
}
