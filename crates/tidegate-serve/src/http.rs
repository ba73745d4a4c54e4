//! The protocol over HTTP: paths, headers, bodies, errors.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tidegate_bundle::FeatureKind;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::infer::{FEATURES, InferError, Model, PREDICTIONS, PROBABILITIES, datatype};
use crate::options::Limits;
use crate::releases::Registry;
use crate::tensor::{InferRequest, shown, write_response};

/// The length of the JSON in front of binary tensors, of request and answer.
const JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// What all requests share.
pub(crate) struct App {
    pub(crate) registry: Arc<Registry>,
    pub(crate) limits: Limits,
    /// One for each body in memory; an inference keeps its slot until it has ended, also when nobody
    /// waits for it any more.
    pub(crate) slots: Arc<Semaphore>,
}

/// An answer that is no success: `{"error": "…"}`.
struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        answer(self.0, &json!({"error": self.1}))
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (status, content_type, body.to_string()).into_response()
}

fn bad_request(text: impl Into<String>) -> ApiError {
    ApiError(StatusCode::BAD_REQUEST, text.into())
}

/// Every request comes here: the paths are few, and each answer is JSON, also that of a wrong path.
pub(crate) async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let limit = app.limits.request;
    match timeout(limit, route(&app, request)).await {
        Ok(result) => result.unwrap_or_else(IntoResponse::into_response),
        Err(_) => {
            let text = format!("the request took longer than {} s", limit.as_secs_f32());
            ApiError(StatusCode::GATEWAY_TIMEOUT, text).into_response()
        }
    }
}

async fn route(app: &App, request: Request) -> Result<Response, ApiError> {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let ["v2", rest @ ..] = segments.as_slice() else {
        return Err(no_such_path());
    };
    // `models/NAME/versions/VERSION/…` is `models/NAME/…` with a condition.
    let (name, version, rest) = match rest {
        ["models", name, "versions", version, rest @ ..] => (Some(*name), Some(*version), rest),
        ["models", name, rest @ ..] => (Some(*name), None, rest),
        rest => (None, None, rest),
    };
    let expected = if rest == ["infer"] { Method::POST } else { Method::GET };
    let asked = request.method();
    let fits = *asked == expected || (expected == Method::GET && *asked == Method::HEAD);
    let ok = |body: Value| Ok(answer(StatusCode::OK, &body));
    match (name, rest) {
        (None, [] | ["health", "live" | "ready"]) | (Some(_), [] | ["ready" | "infer"]) if !fits => {
            Err(ApiError(StatusCode::METHOD_NOT_ALLOWED, format!("use {expected} here")))
        }
        (None, []) => ok(server_metadata()),
        (None, ["health", "live"]) => ok(json!({"live": true})),
        (None, ["health", "ready"]) => {
            let ready = !app.registry.is_empty();
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            Ok(answer(status, &json!({"ready": ready})))
        }
        (Some(name), []) => ok(model_metadata(&*find(app, name, version)?)),
        (Some(name), ["ready"]) => {
            find(app, name, version)?;
            ok(json!({"name": name, "ready": true}))
        }
        (Some(name), ["infer"]) => {
            let model = find(app, name, version)?;
            let (head, body) = request.into_parts();
            infer(app, model, &head.headers, body).await
        }
        _ => Err(no_such_path()),
    }
}

fn no_such_path() -> ApiError {
    ApiError(
        StatusCode::NOT_FOUND,
        "there is no such path: see the Open Inference Protocol, version 2".to_owned(),
    )
}

/// The model, when it is served in the version that was asked for.
fn find(app: &App, name: &str, version: Option<&str>) -> Result<Arc<Model>, ApiError> {
    let missing = |text: String| ApiError(StatusCode::NOT_FOUND, text);
    let model = app
        .registry
        .get(name)
        .ok_or_else(|| missing(format!("there is no model `{}`", shown(name))))?;
    let current = model.bundle.manifest.version;
    match version {
        Some(version) if version != current.to_string() => Err(missing(format!(
            "model `{name}` is served in version {current} and no other"
        ))),
        _ => Ok(model),
    }
}

fn server_metadata() -> Value {
    json!({"name": "tidegate", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]})
}

fn model_metadata(model: &Model) -> Value {
    let bundle = &model.bundle;
    let inputs: Vec<Value> = bundle
        .schema
        .features
        .iter()
        .map(|feature| {
            let mut input = json!({"name": feature.name, "datatype": datatype(feature).as_str(), "shape": [-1]});
            if let (FeatureKind::Category { levels }, Value::Object(input)) = (&feature.kind, &mut input) {
                input.insert("parameters".to_owned(), json!({"levels": levels}));
            }
            input
        })
        .collect();
    json!({
        "name": bundle.manifest.name,
        "versions": [bundle.manifest.version.to_string()],
        "platform": "onnx",
        "inputs": inputs,
        "outputs": [
            {"name": PROBABILITIES, "datatype": "FP64", "shape": [-1]},
            {"name": PREDICTIONS, "datatype": "INT64", "shape": [-1]},
        ],
        "parameters": {
            "digest": bundle.digest.to_string(),
            "threshold": bundle.calibration.threshold,
            "matrix_input": FEATURES,
        },
    })
}

async fn infer(app: &App, model: Arc<Model>, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| encoding != "identity") {
        let text = "compressed bodies are not read: send the request without `Content-Encoding`";
        return Err(ApiError(StatusCode::UNSUPPORTED_MEDIA_TYPE, text.to_owned()));
    }
    let length = |name: HeaderName| {
        let value = headers.get(&name)?;
        let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
        Some(length.ok_or_else(|| bad_request(format!("the header `{name}` is not a number of bytes"))))
    };
    let header = length(JSON_LENGTH).transpose()?;
    let limits = app.limits;
    if length(header::CONTENT_LENGTH)
        .transpose()?
        .is_some_and(|length| length > limits.body_bytes)
    {
        return Err(too_large(limits));
    }
    let slot = Arc::clone(&app.slots).acquire_owned().await;
    let slot = slot.map_err(|_| ApiError(StatusCode::SERVICE_UNAVAILABLE, "the server is ending".to_owned()))?;
    let body = read(body, limits).await?;
    let work = move || {
        let request = InferRequest::parse(&body, header)?;
        // The body can be large, and is not needed for the work itself.
        drop(body);
        let outputs = model.infer(&request, limits.rows)?;
        let outputs: Vec<_> = outputs
            .iter()
            .map(|(name, binary, output)| (*name, *binary, output))
            .collect();
        let manifest = &model.bundle.manifest;
        let written = write_response(&manifest.name, manifest.version, request.id.as_deref(), &outputs);
        drop(slot);
        Ok::<_, InferError>(written)
    };
    let failed = |text: &str| ApiError(StatusCode::INTERNAL_SERVER_ERROR, text.to_owned());
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok((body, json_length))) => Ok(infer_response(body, json_length)),
        Ok(Err(InferError::Request(error))) => Err(bad_request(error.to_string())),
        Ok(Err(InferError::Model(error))) => {
            tracing::warn!(%error, "an inference failed");
            Err(failed("the model could not be run on these inputs"))
        }
        Err(_) => Err(failed("the inference ended unexpectedly")),
    }
}

fn infer_response(body: Vec<u8>, json_length: Option<usize>) -> Response {
    let content_type = if json_length.is_some() {
        "application/octet-stream"
    } else {
        "application/json"
    };
    let mut response = Body::from(body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(length) = json_length {
        headers.insert(JSON_LENGTH, HeaderValue::from(length));
    }
    response
}

fn too_large(limits: Limits) -> ApiError {
    let text = format!(
        "the body is longer than {} bytes: send fewer rows at once",
        limits.body_bytes
    );
    ApiError(StatusCode::PAYLOAD_TOO_LARGE, text)
}

async fn read(body: Body, limits: Limits) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut chunks) = (Vec::new(), body.into_data_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| bad_request("the body ended early"))?;
        if bytes.len() + chunk.len() > limits.body_bytes {
            return Err(too_large(limits));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
