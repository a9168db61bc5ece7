//! Who issues the tokens.

use anyhow::Result;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A token issuer.
pub(super) struct Issuer(EcdsaKeyPair);

impl Issuer {
    pub(super) fn new() -> Result<Self> {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new());
        let document = document.map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(Self(EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref()).map_err(|e| anyhow::anyhow!("{e}"))?))
    }

    pub(super) fn jwks(&self) -> Value {
        // 0x04, x, y
        let point = self.0.public_key().as_ref();
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])}]})
    }

    pub(super) fn token(&self, claims: &Value) -> Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT", "kid": "k1"})), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), text.as_bytes());
        let signature = signature.map_err(|_| anyhow::anyhow!("signing failed"))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
