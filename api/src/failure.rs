//! Errors as JSON, either way; and bodies.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest `error` of a reply that is repeated to a person, in characters.
const ERROR_MAX: usize = 1000;

/// Why a request has no answer: a status, and `{"error": ...}` with what else there is to say.
#[derive(Debug)]
pub struct Failure {
    /// The status.
    pub status: StatusCode,
    body: serde_json::Map<String, serde_json::Value>,
}

impl Failure {
    /// This `status`, for this reason.
    #[must_use]
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        let mut body = serde_json::Map::new();
        body.insert("error".into(), error.into().into());
        Self { status, body }
    }

    /// What is asked for is no request.
    #[must_use]
    pub fn bad(error: impl std::fmt::Display) -> Self {
        let error = format!("no such request: {error}");
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// The same with one more field.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<serde_json::Value>) -> Self {
        self.body.insert(field.into(), value.into());
        self
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.body)).into_response()
    }
}

/// The JSON of a request. It must say that it is JSON: a page in a browser cannot have that sent to another site
/// without being allowed to.
///
/// # Errors
/// 415 or 400.
pub fn read<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Failure> {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "a body is JSON, and says so: Content-Type: application/json",
        ));
    }
    serde_json::from_slice(body).map_err(Failure::bad)
}

/// `message` as the body of an answer.
pub fn said(message: &impl Serialize) -> Response {
    axum::Json(message).into_response()
}

/// The `error` of a reply's body, as one line; `None` if there is none.
#[must_use]
pub fn error_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Said {
        error: String,
    }
    let said: Said = serde_json::from_slice(body).ok()?;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    Some(said.error.chars().take(ERROR_MAX).map(plain).collect())
}
