use http::HeaderValue;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::testing::issuer::Issuer;

fn policy() -> Policy {
    Policy { issuer: "https://issuer.test".into(), audiences: vec!["demo".into(), "other".into()] }
}

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

fn good() -> Value {
    json!({"iss": "https://issuer.test", "aud": ["demo"], "sub": "ada", "exp": now() + 60})
}

#[test]
fn a_good_token_names_its_subject() {
    let issuer = Issuer::new();
    assert_eq!(policy().verify(&issuer.sign(&good()), &issuer.jwk()), Ok("ada".into()));
}

#[rstest]
#[case::no_exp("exp", Value::Null)]
#[case::expired("exp", json!(1))]
#[case::no_sub("sub", Value::Null)]
#[case::empty_sub("sub", json!(""))]
#[case::wrong_issuer("iss", json!("https://evil.test"))]
#[case::no_issuer("iss", Value::Null)]
#[case::wrong_audience("aud", json!(["elsewhere"]))]
#[case::no_audience("aud", Value::Null)]
#[case::not_yet("nbf", json!(u32::MAX))]
fn a_token_with_one_wrong_claim_is_refused(#[case] claim: &str, #[case] value: Value) {
    let issuer = Issuer::new();
    let mut claims = good();
    let fields = claims.as_object_mut().unwrap();
    match value {
        Value::Null => fields.remove(claim),
        value => fields.insert(claim.into(), value),
    };
    assert_eq!(policy().verify(&issuer.sign(&claims), &issuer.jwk()), Err(Rejection::Invalid));
}

#[test]
fn a_token_of_another_key_or_algorithm_is_refused() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    assert_eq!(policy().verify(&stranger.sign(&good()), &issuer.jwk()), Err(Rejection::Invalid));
    // The public key as HMAC secret, and no signature at all.
    let public = serde_json::to_vec(&issuer.jwk()).unwrap();
    let header = jsonwebtoken::Header { kid: Some(issuer.kid()), ..jsonwebtoken::Header::default() };
    let confused =
        jsonwebtoken::encode(&header, &good(), &jsonwebtoken::EncodingKey::from_secret(&public)).unwrap();
    assert_eq!(policy().verify(&confused, &issuer.jwk()), Err(Rejection::Invalid));
    let signed = issuer.sign(&good());
    let unsigned = format!("{}.", signed.rsplit_once('.').unwrap().0);
    assert_eq!(policy().verify(&unsigned, &issuer.jwk()), Err(Rejection::Invalid));
}

#[rstest]
#[case(&[], Err(Rejection::Missing))]
#[case(&["Bearer abc"], Ok("abc"))]
#[case(&["bEaReR abc"], Ok("abc"))]
#[case(&["Basic abc"], Err(Rejection::Missing))]
#[case(&["Bearer"], Err(Rejection::Missing))]
#[case(&["Bearer abc", "Bearer abc"], Err(Rejection::Ambiguous))]
fn a_request_carries_exactly_one_bearer_token(
    #[case] values: &[&'static str],
    #[case] expected: Result<&str, Rejection>,
) {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(AUTHORIZATION, HeaderValue::from_static(value));
    }
    assert_eq!(bearer(&headers), expected);
}

#[rstest]
#[case(&[("ID_TOKEN_ISSUER", "x")], "ID_TOKEN_ISSUER is set but ID_TOKEN_JWKS_URL is not")]
#[case(&[("ID_TOKEN_JWKS_URL", "http://x"), ("ID_TOKEN_AUDIENCE", "x")], "ID_TOKEN_JWKS_URL is set but ID_TOKEN_ISSUER is not")]
#[case(&[("ID_TOKEN_JWKS_URL", "http://x"), ("ID_TOKEN_ISSUER", "x")], "ID_TOKEN_JWKS_URL is set but ID_TOKEN_AUDIENCE is not")]
fn half_a_token_check_is_refused(#[case] pairs: &[(&str, &str)], #[case] message: &str) {
    let env: Env = pairs.iter().copied().collect();
    let error = Verifier::from_env(&env).err().unwrap().to_string();
    assert!(error.starts_with(message), "{error}");
}
