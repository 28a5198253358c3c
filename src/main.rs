//! The program `gorget`; everything is in the library.

fn main() -> std::process::ExitCode {
    gorget::main()
}
