//! Programs that tests start: where they are and where they may listen.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
};

/// The program `name` in the folder that `PERISTYLE_BIN` names.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("PERISTYLE_BIN")
        .expect("PERISTYLE_BIN is not set; run `cargo sandbox test`, which builds the programs and sets it");
    let binary = Path::new(&folder).join(name);
    assert!(
        binary.exists(),
        "{} does not exist; run `cargo sandbox test`, which builds it",
        binary.display()
    );
    binary
}

/// A loopback address of one's own, on which every port is free: a free port
/// that is looked for may be taken by the time it is used.
pub fn own_address() -> String {
    static TAKEN: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{low}.{}", 64 + high % 128, TAKEN.fetch_add(1, Ordering::Relaxed))
}
