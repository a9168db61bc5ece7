//! Which URLs may be fetched, and which addresses a name may lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use platform::{ConfigError, Env};
use url::{Host, Url};

/// Why a URL is not fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the URL is not valid")]
    Malformed,
    #[error("only http and https are allowed")]
    Scheme,
    #[error("the URL carries credentials")]
    Credentials,
    #[error("the host or port is not allowed: add it to CALLER_ALLOWED_HOSTS as host or host:port")]
    Host,
    #[error("the host leads to an address that is not allowed")]
    Address,
    #[error("too many redirects")]
    Redirects,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    host: String,
    port: Option<u16>,
}

impl Entry {
    fn allows(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port.map_or(port == 80 || port == 443, |allowed| allowed == port)
    }
}

/// The hosts that may be called, by exact name.
#[derive(Clone, Debug, Default)]
pub(crate) struct AllowList {
    external: Vec<Entry>,
    internal: Vec<Entry>,
}

impl AllowList {
    pub(crate) fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let entries = |name: &str| {
            let parsed = env.list(name).into_iter().map(|item| {
                parse(&item).ok_or_else(|| ConfigError::Invalid {
                    name: name.into(),
                    value: item,
                    expected: "a list of host names, each with or without a port; addresses and wildcards are not taken",
                })
            });
            parsed.collect::<Result<Vec<Entry>, _>>()
        };
        Ok(Self {
            external: entries("CALLER_ALLOWED_HOSTS")?,
            internal: entries("CALLER_ALLOWED_INTERNAL_HOSTS")?,
        })
    }

    /// Checks a URL before it is fetched, the first as well as every redirect.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Refusal> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refusal::Credentials);
        }
        // A literal address is never resolved and would go around the check
        // of addresses; it cannot be on the list either.
        let Some(Host::Domain(host)) = url.host() else { return Err(Refusal::Host) };
        let port = url.port_or_known_default().ok_or(Refusal::Host)?;
        let allowed = self.external.iter().chain(&self.internal).any(|entry| entry.allows(host, port));
        if allowed { Ok(()) } else { Err(Refusal::Host) }
    }

    /// Checks where a name leads. One bad address refuses them all: a mixed
    /// answer is the mark of an attack, not of a host worth calling.
    pub(crate) fn check_addresses(&self, host: &str, addresses: &[IpAddr]) -> Result<(), Refusal> {
        let internal = self.internal.iter().any(|entry| entry.host == host);
        let allowed = |address: &IpAddr| match scope(*address) {
            Scope::Public => true,
            Scope::Internal => internal,
            Scope::Forbidden => false,
        };
        if !addresses.is_empty() && addresses.iter().all(allowed) { Ok(()) } else { Err(Refusal::Address) }
    }
}

fn parse(item: &str) -> Option<Entry> {
    // The URL parser brings the name into the form that URLs have later.
    let url = Url::parse(&format!("http://{item}/")).ok()?;
    let Some(Host::Domain(host)) = url.host() else { return None };
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let bare =
        url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    let written = item.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match written {
        _ if !(plain && bare) => None,
        None => Some(Entry { host: host.to_owned(), port: None }),
        Some(port) => Some(Entry { host: host.to_owned(), port: Some(port.ok()?) }),
    }
}

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// On the internet.
    Public,
    /// This host and private networks: only for hosts named as internal.
    Internal,
    /// Link-local (cloud metadata), multicast, documentation and the like:
    /// never.
    Forbidden,
}

/// The scope of an address, from the IANA registries of special-purpose
/// addresses. An IPv4 address inside an IPv6 one counts as the former.
pub(crate) fn scope(address: IpAddr) -> Scope {
    match address {
        IpAddr::V4(address) => scope_v4(address),
        IpAddr::V6(address) => scope_v6(address),
    }
}

fn scope_v4(address: Ipv4Addr) -> Scope {
    match address.octets() {
        [10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Scope::Internal,
        [0, ..]
        | [169, 254, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [224..=255, ..] => Scope::Forbidden,
        _ => Scope::Public,
    }
}

fn scope_v6(address: Ipv6Addr) -> Scope {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        scope_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Scope::Internal,
        // Mapped addresses and the translation prefix of NAT64.
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0xfc00..=0xfdff, ..] => Scope::Internal,
        // Teredo, benchmarking, ORCHID, documentation and 6to4 lie inside
        // global unicast space.
        [0x2001, 0..=0x01ff | 0x0db8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..] => Scope::Forbidden,
        [0x2000..=0x3fff, ..] => Scope::Public,
        _ => Scope::Forbidden,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn list(external: &str, internal: &str) -> AllowList {
        let pairs = [("CALLER_ALLOWED_HOSTS", external), ("CALLER_ALLOWED_INTERNAL_HOSTS", internal)];
        AllowList::from_env(&Env::from_iter(pairs)).unwrap()
    }

    #[rstest]
    #[case("https://example.com/a?b", Ok(()))]
    #[case("http://EXAMPLE.com", Ok(()))]
    #[case("http://example.com:8443", Err(Refusal::Host))]
    #[case("https://api.test:8443/x", Ok(()))]
    #[case("https://api.test/x", Err(Refusal::Host))]
    #[case("http://inside.svc:8080", Ok(()))]
    #[case("http://sub.example.com", Err(Refusal::Host))]
    #[case("http://example.com.evil.test", Err(Refusal::Host))]
    #[case("http://example.com./", Err(Refusal::Host))]
    #[case("http://example.com@evil.test/", Err(Refusal::Credentials))]
    #[case("http://user:pw@example.com/", Err(Refusal::Credentials))]
    #[case("ftp://example.com/", Err(Refusal::Scheme))]
    #[case("file:///etc/passwd", Err(Refusal::Scheme))]
    #[case("gopher://example.com/", Err(Refusal::Scheme))]
    #[case("http://127.0.0.1/", Err(Refusal::Host))]
    #[case("http://0x7f.1/", Err(Refusal::Host))]
    #[case("http://2130706433/", Err(Refusal::Host))]
    #[case("http://[::1]/", Err(Refusal::Host))]
    #[case("http://[::ffff:169.254.169.254]/", Err(Refusal::Host))]
    #[case("http://localhost/", Err(Refusal::Host))]
    fn only_listed_hosts_and_ports_are_fetched(#[case] url: &str, #[case] expected: Result<(), Refusal>) {
        let list = list("example.com, api.test:8443", "inside.svc:8080");
        assert_eq!(list.check(&Url::parse(url).unwrap()), expected);
    }

    #[rstest]
    #[case("93.184.216.34", Scope::Public)]
    #[case("172.15.0.1", Scope::Public)]
    #[case("172.32.0.1", Scope::Public)]
    #[case("100.128.0.1", Scope::Public)]
    #[case("127.0.0.1", Scope::Internal)]
    #[case("10.1.2.3", Scope::Internal)]
    #[case("172.16.0.1", Scope::Internal)]
    #[case("192.168.1.1", Scope::Internal)]
    #[case("100.64.0.1", Scope::Internal)]
    #[case("0.0.0.0", Scope::Forbidden)]
    #[case("169.254.169.254", Scope::Forbidden)]
    #[case("192.0.2.1", Scope::Forbidden)]
    #[case("198.18.0.1", Scope::Forbidden)]
    #[case("224.0.0.1", Scope::Forbidden)]
    #[case("255.255.255.255", Scope::Forbidden)]
    #[case("2606:2800:220:1::1", Scope::Public)]
    #[case("64:ff9b::5db8:d822", Scope::Public)]
    #[case("::1", Scope::Internal)]
    #[case("fd00::1", Scope::Internal)]
    #[case("::ffff:10.0.0.1", Scope::Internal)]
    #[case("64:ff9b::7f00:1", Scope::Internal)]
    #[case("::", Scope::Forbidden)]
    #[case("::ffff:169.254.169.254", Scope::Forbidden)]
    #[case("64:ff9b::a9fe:a9fe", Scope::Forbidden)]
    #[case("::127.0.0.1", Scope::Forbidden)]
    #[case("fe80::1", Scope::Forbidden)]
    #[case("fec0::1", Scope::Forbidden)]
    #[case("ff02::1", Scope::Forbidden)]
    #[case("2001:db8::1", Scope::Forbidden)]
    #[case("2001::1", Scope::Forbidden)]
    #[case("2002:7f00:1::", Scope::Forbidden)]
    fn addresses_have_the_scope_of_their_registry(#[case] address: &str, #[case] expected: Scope) {
        assert_eq!(scope(address.parse().unwrap()), expected);
    }

    #[test]
    fn internal_addresses_are_for_internal_hosts_and_metadata_for_nobody() {
        let list = list("example.com", "inside.svc");
        let (public, private, metadata) = (
            "93.184.216.34".parse().unwrap(),
            "10.0.0.1".parse().unwrap(),
            "169.254.169.254".parse().unwrap(),
        );
        assert_eq!(list.check_addresses("example.com", &[public]), Ok(()));
        assert_eq!(list.check_addresses("example.com", &[public, private]), Err(Refusal::Address));
        assert_eq!(list.check_addresses("inside.svc", &[private]), Ok(()));
        assert_eq!(list.check_addresses("inside.svc", &[metadata]), Err(Refusal::Address));
        assert_eq!(list.check_addresses("example.com", &[]), Err(Refusal::Address));
    }

    #[rstest]
    #[case("10.0.0.1")]
    #[case("[::1]")]
    #[case("*.example.com")]
    #[case("example.com/path")]
    #[case("http://example.com")]
    #[case("user@example.com")]
    #[case("example.com:99999")]
    fn an_entry_that_is_no_host_name_is_refused(#[case] item: &str) {
        let error = AllowList::from_env(&Env::from_iter([("CALLER_ALLOWED_HOSTS", item)])).unwrap_err();
        assert!(error.to_string().starts_with("CALLER_ALLOWED_HOSTS="), "{error}");
    }

    proptest! {
        #[test]
        fn a_mapped_address_has_the_scope_of_the_address_inside(bits: u32) {
            let inner = Ipv4Addr::from_bits(bits);
            prop_assert_eq!(scope(inner.to_ipv6_mapped().into()), scope(inner.into()));
        }

        #[test]
        fn what_the_standard_library_calls_private_is_never_public(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            let special = address.is_private() || address.is_loopback() || address.is_link_local()
                || address.is_broadcast() || address.is_documentation() || address.is_multicast()
                || address.is_unspecified();
            prop_assert!(!special || scope(address.into()) != Scope::Public);
        }

        #[test]
        fn an_empty_list_allows_no_url(text in "https?://[a-z0-9.:@\\[\\]-]{1,30}/?") {
            if let Ok(url) = Url::parse(&text) {
                prop_assert!(AllowList::default().check(&url).is_err());
            }
        }
    }
}
