//! Sockets to a server, and how they are encrypted.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Endpoint, Error};

/// Connects to `endpoint`. The second handle of the same socket hears the
/// server let go of it, when what reads the first has ended.
pub(super) async fn dial(endpoint: &Endpoint) -> io::Result<(TcpStream, TcpStream)> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let ear = TcpStream::from_std(stream.try_clone()?)?;
    Ok((TcpStream::from_std(stream)?, ear))
}

/// TLS with a certificate for `host` by one of `authorities` (PEM).
///
/// # Errors
/// When they are no list of certificates.
pub(super) fn verified(
    authorities: &str,
    host: &str,
) -> Result<<MakeRustlsConnect as MakeTlsConnect<TcpStream>>::TlsConnect, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let certificate = certificate.map_err(|e| Error::Authorities(e.to_string()))?;
        roots.add(certificate).map_err(|e| Error::Authorities(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(Error::Authorities("no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Authorities(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let Ok(connector) =
        MakeTlsConnect::<TcpStream>::make_tls_connect(&mut MakeRustlsConnect::new(config), host);
    Ok(connector)
}
