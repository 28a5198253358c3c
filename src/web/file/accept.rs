//! Whether a client takes gzip.

/// By its `Accept-Encoding`; what a star allows counts, too.
pub(super) fn gzip(header: Option<&str>) -> bool {
    let Some(header) = header else { return false };
    let weight = |name: &str| {
        header.split(',').find_map(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let found = parts.next().is_some_and(|known| known.eq_ignore_ascii_case(name));
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            found.then(|| weight.is_none_or(|text| text.parse::<f32>().is_ok_and(|q| q > 0.0)))
        })
    };
    weight("gzip").or_else(|| weight("*")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_must_be_named_and_wanted() {
        for (header, expected) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("*", true),
            ("*;q=0", false),
            ("identity", false),
            ("x-gzipped", false),
            ("", false),
        ] {
            assert_eq!(gzip(Some(header)), expected, "{header:?}");
        }
        assert!(!gzip(None));
    }
}
