//! The style sheet, the script and the icon: part of the program, and named after what they hold, so that browsers
//! keep them for good and ask for others when there are others.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

struct Asset {
    stem: &'static str,
    ending: &'static str,
    kind: &'static str,
    text: &'static str,
}

const ASSETS: [Asset; 3] = [
    Asset {
        stem: "style",
        ending: "css",
        kind: "text/css;charset=utf-8",
        text: include_str!("../assets/style.css"),
    },
    Asset {
        stem: "script",
        ending: "js",
        kind: "text/javascript;charset=utf-8",
        text: include_str!("../assets/script.js"),
    },
    Asset {
        stem: "icon",
        ending: "svg",
        kind: "image/svg+xml",
        text: include_str!("../assets/icon.svg"),
    },
];

/// Digits of the digest in a name: 64 bits, which no two versions share by chance.
const DIGITS: usize = 8;

static NAMES: LazyLock<[String; 3]> = LazyLock::new(|| {
    ASSETS.each_ref().map(|asset| {
        let digest = Sha256::digest(asset.text.as_bytes());
        let digest: String = digest.iter().take(DIGITS).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{digest}.{}", asset.stem, asset.ending)
    })
});

/// The link to an asset.
pub(super) fn link(context: &Context, stem: &str) -> String {
    let found = ASSETS.iter().zip(NAMES.iter()).find(|(asset, _)| asset.stem == stem);
    context.link(&format!("/assets/{}", found.map_or("", |(_, name)| name)))
}

/// GET `/assets/NAME`.
pub(super) fn get(_: &mut Context, _: &Request, captures: &Captures) -> Result<Response, Failure> {
    let name = captures.get("name");
    let found = ASSETS.iter().zip(NAMES.iter()).find(|(_, known)| *known == name);
    let (asset, _) = found.ok_or_else(|| Failure::missing(format!("There is no asset {name}.")))?;
    Ok(Response::bytes(200, asset.kind, asset.text)
        .with("Cache-Control", "public, max-age=31536000, immutable"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn assets_are_small() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        for asset in &ASSETS {
            encoder.write_all(asset.text.as_bytes()).unwrap();
        }
        let size = encoder.finish().unwrap().len();
        assert!(size < 30_000, "{size} bytes");
    }
}
