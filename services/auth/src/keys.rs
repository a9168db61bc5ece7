//! Signing keys, kept in the database so that all replicas agree.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{
    Algorithm, EncodingKey,
    jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash},
};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{PgConnection, PgPool};
use tokio::sync::Mutex;

/// How long a replica may use the keys it has read: a new key is published
/// everywhere within this time.
const FRESH: Duration = Duration::from_mins(1);
/// Age from which a key signs, in seconds: from then on every replica publishes
/// it, and whoever caches the set has had time to ask again. The first key
/// signs at once, there is nothing to wait for.
const SETTLED: i32 = 120;
/// Advisory lock under which the first key is made.
const LOCK: i64 = 0x6b65_7973;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the signing keys cannot be read")]
    Database(#[from] sqlx::Error),
    #[error("a signing key is damaged or cannot be made")]
    Key,
}

/// The keys of one moment.
pub(crate) struct KeyRing {
    /// Signs new tokens.
    pub(crate) signing: EncodingKey,
    pub(crate) kid: String,
    /// Verifies all that are still in use.
    pub(crate) public: JwkSet,
}

pub(crate) struct KeyStore {
    pool: PgPool,
    cache: Mutex<Option<(Arc<KeyRing>, Instant)>>,
}

impl KeyStore {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool, cache: Mutex::default() }
    }

    /// The current keys; the first call anywhere makes the first key. Known
    /// keys serve on while the database is away: they do not go bad by it,
    /// and a login needs the database for itself.
    pub(crate) async fn ring(&self) -> Result<Arc<KeyRing>, KeyError> {
        let mut cache = self.cache.lock().await;
        if let Some((ring, at)) = &*cache
            && at.elapsed() < FRESH
        {
            return Ok(ring.clone());
        }
        match self.load().await {
            Ok(ring) => {
                let ring = Arc::new(ring);
                *cache = Some((ring.clone(), Instant::now()));
                Ok(ring)
            }
            Err(error) => match &*cache {
                Some((ring, _)) => {
                    tracing::warn!(%error, "keys that were read before are used on");
                    Ok(ring.clone())
                }
                None => Err(error),
            },
        }
    }

    async fn load(&self) -> Result<KeyRing, KeyError> {
        let mut transaction = self.pool.begin().await?;
        let mut keys = stored(&mut transaction).await?;
        if keys.is_empty() {
            sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
            keys = stored(&mut transaction).await?;
        }
        if keys.is_empty() {
            let (key, jwk) = tokio::task::spawn_blocking(generate).await.map_err(|_| KeyError::Key)??;
            sqlx::query("insert into signing_keys (kid, algorithm, private_pem) values ($1, 'RS256', $2)")
                .bind(&jwk.common.key_id)
                .bind(key.expose_secret())
                .execute(&mut *transaction)
                .await?;
            tracing::info!(kid = jwk.common.key_id, "made the first signing key");
            keys = vec![StoredKey { key, is_settled: true }];
        }
        transaction.commit().await?;
        ring(&keys)
    }
}

/// A private key in use.
struct StoredKey {
    key: SecretString,
    /// Whether it is old enough to sign.
    is_settled: bool,
}

/// The keys in use, the newest first.
async fn stored(connection: &mut PgConnection) -> Result<Vec<StoredKey>, sqlx::Error> {
    let query = "select private_pem, created_at <= now() - make_interval(secs => $1) from signing_keys
                 where retired_at is null order by created_at desc, kid";
    let keys: Vec<(String, bool)> =
        sqlx::query_as(query).bind(f64::from(SETTLED)).fetch_all(connection).await?;
    Ok(keys.into_iter().map(|(key, is_settled)| StoredKey { key: key.into(), is_settled }).collect())
}

fn generate() -> Result<(SecretString, Jwk), KeyError> {
    let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| KeyError::Key)?;
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(|_| KeyError::Key)?;
    let body = STANDARD.encode(der.as_ref());
    let key = SecretString::from(format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"));
    let jwk = public(&key)?;
    Ok((key, jwk))
}

/// The public part. Its id is the thumbprint of RFC 7638, which anyone can
/// compute from the key itself.
fn public(key: &SecretString) -> Result<Jwk, KeyError> {
    let key = encoding(key)?;
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).map_err(|_| KeyError::Key)?;
    jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| KeyError::Key)?);
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    Ok(jwk)
}

/// Signs with the newest key that is settled, else with the oldest, which
/// has been published the longest.
fn ring(keys: &[StoredKey]) -> Result<KeyRing, KeyError> {
    let published: Vec<Jwk> = keys.iter().map(|stored| public(&stored.key)).collect::<Result<_, _>>()?;
    let signing = keys.iter().find(|stored| stored.is_settled).or(keys.last()).ok_or(KeyError::Key)?;
    let kid = public(&signing.key)?.common.key_id.ok_or(KeyError::Key)?;
    Ok(KeyRing { signing: encoding(&signing.key)?, kid, public: JwkSet { keys: published } })
}

fn encoding(key: &SecretString) -> Result<EncodingKey, KeyError> {
    EncodingKey::from_rsa_pem(key.expose_secret().as_bytes()).map_err(|_| KeyError::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_is_the_thumbprint_of_rfc_7638() {
        // The key and thumbprint of section 3.1 of the RFC.
        let jwk: Jwk = serde_json::from_str(
            r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#,
        )
        .unwrap();
        assert_eq!(
            jwk.thumbprint(ThumbprintHash::SHA256).unwrap(),
            "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
        );
    }

    #[test]
    fn the_newest_settled_key_signs_all_are_published_and_only_their_public_parts() {
        let keys: Vec<_> = (0..3).map(|_| generate().unwrap().0).collect();
        let signer = |settled: [bool; 3]| {
            let stored = keys.iter().cloned().zip(settled);
            let stored: Vec<_> = stored.map(|(key, is_settled)| StoredKey { key, is_settled }).collect();
            let ring = ring(&stored).unwrap();
            let is_signer = |jwk: &Jwk| jwk.common.key_id.as_ref() == Some(&ring.kid);
            let position = ring.public.keys.iter().position(is_signer);
            (ring, position)
        };
        assert_eq!(signer([true, true, true]).1, Some(0));
        assert_eq!(signer([false, true, true]).1, Some(1));
        let (ring, position) = signer([false, false, false]);
        assert_eq!((ring.public.keys.len(), position), (3, Some(2)));
        let published = serde_json::to_value(&ring.public).unwrap();
        let fields: Vec<_> = published["keys"][0].as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["alg", "e", "kid", "kty", "n", "use"]);
    }
}
