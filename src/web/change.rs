//! What changes something: each a command over the bridge, for whoever asks.

use super::route::Route;

pub(super) const ROUTES: &[Route] = &[];
