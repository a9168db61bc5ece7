//! Addresses and ports for programs that the sandbox and its tests start.

use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

/// Below the ports that Linux gives to outgoing connections (32768 to 60999):
/// one of those could take the port of a server that is about to start again.
const RANGE: Range<u16> = 12_000..32_000;
const TRIES: usize = 1000;

/// Ports that nobody listens on now at any address; all are held until all
/// are known, so that they differ.
///
/// # Errors
/// When no port is free or the system has no randomness.
pub fn free<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::with_capacity(N);
    for _ in 0..TRIES {
        if listeners.len() == N {
            break;
        }
        let mut random = [0; 2];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        let span = RANGE.end - RANGE.start;
        let port = RANGE.start + u16::from_le_bytes(random) % span;
        listeners.extend(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
    }
    let mut ports = [0; N];
    if listeners.len() < N {
        bail!("no free port from {} to {}", RANGE.start, RANGE.end);
    }
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// The address by which this machine reaches others; API objects may not hold one of the loopback.
///
/// # Errors
/// When it has no other.
pub fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // Sends nothing: the kernel only chooses the address.
    socket
        .connect((Ipv4Addr::new(192, 0, 2, 1), 9))
        .context("this machine has no address but the loopback's")?;
    let address = socket.local_addr()?.ip();
    ensure!(!address.is_loopback(), "this machine has no address but the loopback's");
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_can_be_listened_on() {
        let ports: [u16; 50] = free().unwrap();
        let listeners: Vec<_> =
            ports.iter().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap()).collect();
        assert_eq!(listeners.len(), 50);
    }
}
