//! What is sent as it is on disk: logs, products, assets.

use super::route::Route;

pub(super) const ROUTES: &[Route] = &[];
