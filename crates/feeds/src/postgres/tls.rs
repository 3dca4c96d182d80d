use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::PostgresError;
use super::settings::{Server, SslMode};

/// TLS over a connection whose server has agreed to it.
pub(crate) async fn protect(server: &Server, stream: TcpStream) -> Result<TlsStream<TcpStream>, PostgresError> {
    let refused = |reason: String| PostgresError::Tls { server: server.shown(), reason };
    let name = ServerName::try_from(server.host.clone())
        .map_err(|_| refused("host is no name that a certificate could have".to_owned()))?;
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(error.to_string()))?;
    let config = match server.sslmode {
        SslMode::VerifyFull => config.with_root_certificates(roots(server)?).with_no_client_auth(),
        SslMode::Require | SslMode::Disable => {
            config.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer { provider })).with_no_client_auth()
        }
    };
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            refused(format!("the server's certificate or TLS version is not accepted: {error}"))
        } else {
            PostgresError::Connection { server: server.shown(), what: "starting TLS", source: error }
        }
    })
}

/// The certificates to trust: those of the file that the contract names, or the system's.
fn roots(server: &Server) -> Result<RootCertStore, PostgresError> {
    let refused = |reason: String| PostgresError::Tls { server: server.shown(), reason };
    let (loaded, place) = match &server.sslrootcert {
        Some(file) => (load_certs_from_paths(Some(file), None), file.display().to_string()),
        None => (load_native_certs(), "the system".to_owned()),
    };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let why = loaded.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        return Err(refused(format!("no trusted certificate in {place}{why}; name a PEM file with sslrootcert")));
    }
    Ok(roots)
}

/// Believes every certificate, as libpq's `sslmode=require` does; that the server has its key is still checked.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
