//! Ports, limits and times.

use std::time::Duration;

use crate::{
    access_log::{Mode, Policy},
    config::{ConfigError, Env},
};

/// Ports, limits and times of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// gRPC: `GRPC_PORT`; else `PORT`, unless HTTP has it; else 50051.
    pub grpc_port: u16,
    /// HTTP, when a module serves it: `PORT`, else 8080.
    pub http_port: u16,
    /// Metrics and health over HTTP: `METRICS_PORT`, 9090.
    pub metrics_port: u16,
    /// `ACCESS_LOG` (`All`) and `ACCESS_LOG_SLOW` (1s).
    pub access_log: Policy,
    /// `REQUEST_TIMEOUT` (30s): the longest time to a first byte.
    pub request_timeout: Duration,
    /// `MAX_CONCURRENT_REQUESTS` (512) per listener; more are refused.
    pub max_concurrent: usize,
    /// `DRAIN_TIMEOUT` (20s): how long running requests may take at the end.
    pub drain_timeout: Duration,
}

impl Settings {
    /// Reads the settings of a process with (`http`) or without HTTP modules.
    ///
    /// # Errors
    /// When a variable is wrong.
    pub fn from_env(env: &Env, http: bool) -> Result<Self, ConfigError> {
        let port = |name, default| env.or(name, default, "a port number from 0 to 65535");
        let grpc_port =
            if http { port("GRPC_PORT", 50051) } else { port("GRPC_PORT", port("PORT", 50051)?) }?;
        Ok(Self {
            grpc_port,
            http_port: port("PORT", 8080)?,
            metrics_port: port("METRICS_PORT", 9090)?,
            access_log: Policy {
                mode: env.parse::<Mode>("ACCESS_LOG", "All, Abnormal or Off")?.unwrap_or(Mode::All),
                slow: env.duration("ACCESS_LOG_SLOW", Duration::from_secs(1))?,
            },
            request_timeout: env.duration("REQUEST_TIMEOUT", Duration::from_secs(30))?,
            max_concurrent: env.or("MAX_CONCURRENT_REQUESTS", 512, "a number of requests")?,
            drain_timeout: env.duration("DRAIN_TIMEOUT", Duration::from_secs(20))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(pairs: &[(&str, &str)], http: bool) -> (u16, u16) {
        let settings = Settings::from_env(&pairs.iter().copied().collect(), http).unwrap();
        (settings.grpc_port, settings.http_port)
    }

    #[test]
    fn port_belongs_to_http_where_http_is_served_and_to_grpc_elsewhere() {
        assert_eq!(ports(&[], false).0, 50051);
        assert_eq!(ports(&[("PORT", "7000")], false).0, 7000);
        assert_eq!(ports(&[], true), (50051, 8080));
        assert_eq!(ports(&[("PORT", "7000")], true), (50051, 7000));
        assert_eq!(ports(&[("PORT", "7000"), ("GRPC_PORT", "7001")], true), (7001, 7000));
    }
}
