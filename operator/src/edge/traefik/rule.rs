//! Traefik's rule language. Only text that was checked gets into a rule, so
//! that nothing can end a literal and add a matcher of its own.

use std::fmt;

use crate::edge::route::{Host, RoutePath};

/// A request is a gRPC call, and not gRPC-Web, which expects other answers.
const GRPC_CONTENT_TYPE: &str = "^application/grpc([+;]|$)";

/// What stands in a value of `Upgrade` that is not WebSocket alone.
const NOT_WEBSOCKET: &str = "(?i)[^websockt]";

/// A rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule(String);

impl Rule {
    /// Requests for `host`.
    #[must_use]
    pub fn host(host: &Host) -> Self {
        Self(format!("Host(`{}`)", host.as_str()))
    }

    /// The host that a rule of [`Self::host`] begins with.
    #[must_use]
    pub fn host_in(rule: &str) -> Option<&str> {
        rule.strip_prefix("Host(`")?.split_once("`)").map(|(host, _)| host)
    }

    /// Requests for `path`, by whole segments.
    #[must_use]
    pub fn path(path: &RoutePath) -> Self {
        Self(match path {
            RoutePath::All => "PathPrefix(`/`)".to_owned(),
            // PathPrefix alone would let `/a` match `/ab`.
            RoutePath::Prefix(path) => format!("(Path(`{path}`) || PathPrefix(`{path}/`))"),
            RoutePath::Exact(path) => format!("Path(`{path}`)"),
        })
    }

    /// Requests that are gRPC calls by their content type.
    #[must_use]
    pub fn grpc() -> Self {
        Self(format!("HeaderRegexp(`Content-Type`, `{GRPC_CONTENT_TYPE}`)"))
    }

    /// Requests that ask for no other protocol on their connection than
    /// WebSocket.
    #[must_use]
    pub fn keeps_connection() -> Self {
        Self(format!("!{}", Self::asks_for_another_protocol()))
    }

    /// Requests that ask for another protocol on their connection. Where a
    /// workload agrees to one, the edge hands the connection over, and whatever
    /// is then called through it is decided by nobody.
    ///
    /// Of several lines of the header Traefik 3.6.12 keeps the first before it
    /// looks for a router (pkg/middlewares/forwardedheaders); `HeaderRegexp`
    /// would see all of them.
    #[must_use]
    pub fn asks_for_another_protocol() -> Self {
        Self(format!("HeaderRegexp(`Upgrade`, `{NOT_WEBSOCKET}`)"))
    }

    /// Requests that match both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(format!("{} && {}", self.0, other.0))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
