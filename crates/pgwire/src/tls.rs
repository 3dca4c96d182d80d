use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::{PgWireError, Result};

/// A certificate with its key. Where there is one, nobody comes in without TLS.
#[derive(Clone)]
pub struct TlsIdentity(TlsAcceptor);

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity(…)")
    }
}

impl TlsIdentity {
    /// Reads a chain of certificates, the server's first, and the key of the first, both in PEM; the key in PKCS#8, PKCS#1 or SEC1.
    ///
    /// # Errors
    /// [`PgWireError::Unreadable`], and [`PgWireError::Tls`] when a file holds no such thing or the two do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let bytes = |what, path: &Path| {
            std::fs::read(path).map_err(|source| PgWireError::Unreadable { what, path: path.to_owned(), source })
        };
        let of = |path: &Path, reason: String| PgWireError::Tls(format!("{}: {reason}", path.display()));
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&bytes("certificate", certificate)?)
            .collect::<Result<_, _>>()
            .map_err(|error| of(certificate, format!("the certificate is not PEM: {error}")))?;
        if chain.is_empty() {
            return Err(of(certificate, "there is no certificate in PEM in it".to_owned()));
        }
        let private = PrivateKeyDer::from_pem_slice(&bytes("key", key)?).map_err(|error| {
            of(key, format!("there is no private key in it, in PKCS#8, PKCS#1 or SEC1, without a password: {error}"))
        })?;
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| PgWireError::Tls(error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| of(key, format!("the key cannot be used with {}: {error}", certificate.display())))?;
        let mut config = config;
        // Clients that negotiate TLS at once say so with this name.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}
