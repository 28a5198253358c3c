//! See `src/proto/fuzz.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gorget::fuzz::session(data));
