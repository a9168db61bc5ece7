//! One line per request: which are written, and what they hold.

use std::{str::FromStr, time::Duration};

use tonic::Code;

/// Log target of the access log, so that it can be filtered on its own.
pub const TARGET: &str = "access";

/// Which requests are logged; `ACCESS_LOG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every request.
    All,
    /// Failed and slow requests.
    Abnormal,
    /// None.
    Off,
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "All" => Ok(Self::All),
            "Abnormal" => Ok(Self::Abnormal),
            "Off" => Ok(Self::Off),
            _ => Err(()),
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Grpc(Code),
    Http(u16),
}

impl Outcome {
    /// Whether the request succeeded. Redirects count as success.
    #[must_use]
    pub fn is_ok(self) -> bool {
        match self {
            Self::Grpc(code) => code == Code::Ok,
            Self::Http(status) => status < 400,
        }
    }

    /// The name that logs and metrics use: a gRPC code as its specification
    /// spells it, or an HTTP status.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Grpc(code) => code_name(code).to_owned(),
            Self::Http(status) => status.to_string(),
        }
    }
}

/// Decides whether a request is logged.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// `ACCESS_LOG`.
    pub mode: Mode,
    /// `ACCESS_LOG_SLOW`: from here on a request is slow.
    pub slow: Duration,
}

impl Policy {
    /// Whether the line is written. Health checks that succeed are not: the
    /// kubelet's probes would drown everything else.
    #[must_use]
    pub fn logs(&self, method: &str, outcome: Outcome, elapsed: Duration) -> bool {
        let abnormal = !outcome.is_ok() || elapsed >= self.slow;
        match self.mode {
            Mode::All => abnormal || !method.starts_with("/grpc.health.v1.Health/"),
            Mode::Abnormal => abnormal,
            Mode::Off => false,
        }
    }
}

/// The canonical name of a gRPC code.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Mode::All, "/a.B/C", Code::Ok, 1, true)]
    #[case(Mode::All, "/grpc.health.v1.Health/Check", Code::Ok, 1, false)]
    #[case(Mode::All, "/grpc.health.v1.Health/Check", Code::NotFound, 1, true)]
    #[case(Mode::Abnormal, "/a.B/C", Code::Ok, 999, false)]
    #[case(Mode::Abnormal, "/a.B/C", Code::Ok, 1_000, true)]
    #[case(Mode::Abnormal, "/a.B/C", Code::Unauthenticated, 1, true)]
    #[case(Mode::Off, "/a.B/C", Code::Internal, 5_000, false)]
    fn the_policy_decides_by_mode_outcome_and_time(
        #[case] mode: Mode,
        #[case] method: &str,
        #[case] code: Code,
        #[case] ms: u64,
        #[case] logged: bool,
    ) {
        let policy = Policy { mode, slow: Duration::from_secs(1) };
        assert_eq!(policy.logs(method, Outcome::Grpc(code), Duration::from_millis(ms)), logged);
    }

    #[test]
    fn http_fails_from_400_on() {
        assert!(Outcome::Http(302).is_ok());
        assert!(!Outcome::Http(401).is_ok());
    }
}
