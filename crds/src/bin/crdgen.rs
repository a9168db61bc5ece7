//! Writes the CRDs into the folder given as the only argument, one file a kind.

use std::{env, error::Error, fs, path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    match write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<(), Box<dyn Error>> {
    let folder = env::args().nth(1).map(PathBuf::from).ok_or("usage: crdgen FOLDER")?;
    fs::create_dir_all(&folder)?;
    for crd in peristyle_crds::crd::all() {
        let path = folder.join(format!("{}.yaml", crd.spec.names.plural));
        fs::write(path, serde_saphyr::to_string(&crd)?)?;
    }
    Ok(())
}
