//! What is removed when nodenet is uninstalled: NodeNetSlices, whose finalizers nobody would take off any more, and
//! NodeNetStates. VirtualIPs are the users' and stay.
//!
//! States go first: an agent that still runs removes no virtual server while its own state is missing, so that slices
//! that vanish afterwards mean nothing to it.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, Resource};
use nodenet_crds::{NodeNetSlice, NodeNetState, OPERATOR_FIELD_MANAGER, SLICE_FINALIZER};
use serde_json::json;

/// Time for agents that still run to see that their state is gone, before the slices go.
pub const AGENTS_SEE: Duration = Duration::from_secs(5);
/// Objects of a page of a list.
const PAGE: u32 = 500;

/// Why something is left.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {kind} {name}: {}", crate::publish::explain(.source))]
pub struct Error {
    /// `list`, `release` or `delete`.
    operation: &'static str,
    /// Kind of the object.
    kind: &'static str,
    /// Its name; empty for a list.
    name: String,
    /// What the client said.
    source: Box<kube::Error>,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Slices.
    pub slices: usize,
    /// States.
    pub states: usize,
}

/// Removes everything that the operator has published; between states and slices lies `pause` ([`AGENTS_SEE`], where
/// agents may still run).
///
/// # Errors
/// The first object that could not be removed; calling it again goes on there.
pub async fn cleanup(client: &Client, pause: Duration) -> Result<Removed, Error> {
    let slices: Api<PartialObjectMeta<NodeNetSlice>> = Api::all(client.clone());
    let states: Api<PartialObjectMeta<NodeNetState>> = Api::all(client.clone());
    let mut removed = Removed::default();
    for (name, _) in all(&states, "NodeNetState").await? {
        delete(&states, "NodeNetState", &name).await?;
        removed.states += 1;
    }
    let slices_found = all(&slices, "NodeNetSlice").await?;
    if removed.states > 0 && !slices_found.is_empty() {
        tokio::time::sleep(pause).await;
    }
    for (name, finalizers) in slices_found {
        // Deleted first: an operator that still runs would put the finalizer back on a living slice.
        delete(&slices, "NodeNetSlice", &name).await?;
        if finalizers.iter().any(|f| f == SLICE_FINALIZER) {
            let left: Vec<_> = finalizers.into_iter().filter(|f| f != SLICE_FINALIZER).collect();
            let body = json!({ "metadata": { "finalizers": left } });
            let params =
                PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PatchParams::default() };
            let result = slices.patch(&name, &params, &Patch::Merge(&body)).await.map(drop);
            gone_is_done(result).map_err(|source| Error {
                operation: "release",
                kind: "NodeNetSlice",
                name,
                source,
            })?;
        }
        removed.slices += 1;
    }
    Ok(removed)
}

/// Names and finalizers of all objects; none where the kind does not exist.
async fn all<K>(
    api: &Api<PartialObjectMeta<K>>,
    kind: &'static str,
) -> Result<Vec<(String, Vec<String>)>, Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + 'static,
{
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = match api.list(&params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
            Err(source) => {
                return Err(Error { operation: "list", kind, name: String::new(), source: Box::new(source) });
            }
        };
        let object =
            |o: PartialObjectMeta<K>| Some((o.metadata.name?, o.metadata.finalizers.unwrap_or_default()));
        found.extend(page.items.into_iter().filter_map(object));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

async fn delete<K>(api: &Api<PartialObjectMeta<K>>, kind: &'static str, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + 'static,
{
    let result = api.delete(name, &DeleteParams::default()).await.map(drop);
    gone_is_done(result).map_err(|source| Error { operation: "delete", kind, name: name.to_owned(), source })
}

fn gone_is_done(result: Result<(), kube::Error>) -> Result<(), Box<kube::Error>> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map_err(Box::new),
    }
}
