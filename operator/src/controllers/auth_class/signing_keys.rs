//! The keys with which Oathkeeper signs tokens for workloads: a Secret that its
//! pods mount.
//!
//! It is made where it does not exist, and never looked into: whoever rotates
//! the keys, or brings them from a vault, need not agree with anybody here.

use aws_lc_rs::{
    encoding::{AsBigEndian, EcPrivateKeyBin},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::PostParams};
use peristyle_crds::{FIELD_MANAGER, v1alpha1::auth_class::IdToken};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Error;
use crate::{apply, context::Context, metadata::Owner, retry::bounded};

/// Key of the Secret, and name of the file where it is mounted.
const KEY: &str = "jwks.json";

/// Makes the Secret if it is not there.
///
/// # Errors
/// When the API server refuses, or the system has no randomness.
pub(super) async fn ensure(ctx: &Context, owner: &Owner, token: &IdToken) -> Result<(), Error> {
    let name = &token.jwks_secret;
    if ctx.stores.secrets.get(&owner.namespace, name).is_some() {
        return Ok(());
    }
    let key = generate().ok_or(Error::Key)?;
    let secret = Secret {
        metadata: owner.child(name),
        string_data: Some([(KEY.to_owned(), set(&[key]))].into()),
        ..Secret::default()
    };
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &owner.namespace);
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match bounded(api.create(&params, &secret)).await {
        Ok(_) => Ok(()),
        // The cache does not show it yet.
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(source) => Err(Error::Apply(apply::Error::Request {
            verb: "create",
            kind: "Secret".to_owned(),
            name: name.clone(),
            source: Box::new(source),
        })),
    }
}

/// The content of the file.
#[must_use]
pub fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// A private JSON Web Key. `None` when the system has no randomness.
///
/// ES256: a signature costs Oathkeeper a fraction of RSA's and makes a short
/// header of it.
#[must_use]
pub fn generate() -> Option<Value> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
    let secret: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().ok()?;
    // 0x04, x, y
    let point = pair.public_key().as_ref();
    let (x, y) = point.get(1..)?.split_at_checked(32)?;
    let [x, y, d] = [x, y, secret.as_ref()].map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
    // The thumbprint of RFC 7638: these members, in this order.
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(members));
    Some(
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid, "x": x, "y": y, "d": d}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_complete_and_no_other_has_its_id() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        for member in ["x", "y", "d", "kid"] {
            let bytes = URL_SAFE_NO_PAD.decode(one[member].as_str().unwrap()).unwrap();
            assert_eq!(bytes.len(), 32, "{member}");
            assert_ne!(one[member], other[member], "{member}");
        }
    }
}
