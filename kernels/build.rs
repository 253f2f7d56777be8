//! Compiles every `cu/*.cu` for each architecture into one fatbin that the library embeds, and keeps what the compiler
//! says of each kernel's registers and spills. Without `nvcc` the table is empty: everything else builds and works.
//!
//! `nvcc` is looked for in `NVCC`, `CUDA_HOME`, `.cuda/` of the repository (tools/cuda-toolchain.sh) and `PATH`.
//! `BERT_CUDA_ARCHS` names the architectures, the oldest first, `80,90a` unless told; files with `_sm90` in their name are compiled for
//! 90a alone, if it is among them. `BERT_CUDA=off` builds without kernels, `required` makes a missing compiler an error.
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ARCHS: &str = "80,90a";

fn main() {
    println!("cargo:rerun-if-changed=cu");
    println!("cargo:rerun-if-changed=../.cuda/bin/nvcc");
    for name in ["NVCC", "CUDA_HOME", "BERT_CUDA_ARCHS", "BERT_CUDA"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let wanted = env::var("BERT_CUDA").unwrap_or_default();
    let archs = env::var("BERT_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let nvcc = if wanted == "off" { None } else { find_nvcc() };
    let mut table = String::from(
        "/// The kernels in this binary, one image for each file; none where it was built without nvcc.\npub static IMAGES: &[Image] = &[\n",
    );
    match &nvcc {
        Some((nvcc, _)) => {
            let files = sources(&archs);
            let reports: Vec<String> = std::thread::scope(|scope| {
                let jobs: Vec<_> =
                    files.iter().map(|file| scope.spawn(|| compile(nvcc, file, &archs, &out))).collect();
                jobs.into_iter().map(|job| job.join().unwrap_or_else(|_| std::process::exit(1))).collect()
            });
            for (file, report) in files.iter().zip(reports) {
                let name = stem(file);
                let image = out.join(format!("{name}.fatbin"));
                let _ = writeln!(
                    table,
                    "    Image {{ name: {name:?}, bytes: include_bytes!({:?}), only: {:?}, report: {report:?} }},",
                    image.display().to_string(),
                    only(file)
                );
            }
        }
        None if wanted == "required" => {
            eprintln!("nvcc not found: set NVCC or CUDA_HOME, or run tools/cuda-toolchain.sh");
            std::process::exit(1);
        }
        None if wanted == "off" => {}
        None => println!(
            "cargo:warning=nvcc not found: building without GPU kernels (bash tools/cuda-toolchain.sh fetches it)"
        ),
    }
    table.push_str("];\n");
    let archs = if nvcc.is_some() { &archs[..] } else { "" };
    let version = nvcc.map_or(String::new(), |(_, version)| version);
    let _ = writeln!(
        table,
        "/// The architectures they are compiled for, as in `80,90a`.\npub const ARCHS: &str = {archs:?};\n/// nvcc's release.\npub const COMPILER: &str = {version:?};"
    );
    fs::write(out.join("images.rs"), table).expect("cannot write to OUT_DIR");
}

/// The compiler and its release, as in `13.0`.
fn find_nvcc() -> Option<(PathBuf, String)> {
    let explicit = env::var_os("NVCC").map(PathBuf::from);
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    [explicit, home, Some("../.cuda/bin/nvcc".into()), Some("nvcc".into())].into_iter().flatten().find_map(
        |nvcc| {
            let answer = Command::new(&nvcc).arg("--version").output().ok().filter(|a| a.status.success())?;
            let text = String::from_utf8_lossy(&answer.stdout);
            let release = text.split("release ").nth(1)?.split(',').next()?.to_owned();
            Some((nvcc, release))
        },
    )
}

/// The files that are compiled for one of these architectures.
fn sources(archs: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("cu")
        .expect("kernels/cu is missing")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|x| x == "cu"))
        .filter(|path| only(path).is_none_or(|only| archs.split(',').any(|arch| arch.trim() == only)))
        .collect();
    found.sort();
    found
}

fn stem(file: &Path) -> &str {
    file.file_stem().and_then(|name| name.to_str()).unwrap_or_default()
}

/// The architecture that a file is for alone, if its name says so: instructions of sm_90a are no other's.
fn only(file: &Path) -> Option<&'static str> {
    stem(file).contains("_sm90").then_some("90a")
}

/// Compiles one file; returns the compiler's report of its kernels' resources.
fn compile(nvcc: &Path, source: &Path, archs: &str, out: &Path) -> String {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-Icu", "-lineinfo", "-Werror=all-warnings", "-Xptxas=-v"]);
    for arch in only(source).unwrap_or(archs).split(',').map(str::trim) {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    // The oldest one's intermediate code too: drivers compile it for GPUs that are newer than all of these.
    if let (Some(oldest), None) = (archs.split(',').map(str::trim).next(), only(source)) {
        command.arg(format!("-gencode=arch=compute_{oldest},code=compute_{oldest}"));
    }
    command.arg(source).arg("-o").arg(out.join(format!("{}.fatbin", stem(source))));
    let done =
        command.output().unwrap_or_else(|error| panic!("{} could not be started: {error}", nvcc.display()));
    let report = String::from_utf8_lossy(&done.stderr).into_owned();
    if !done.status.success() {
        eprintln!("{}:\n{report}", source.display());
        panic!("{} does not compile", source.display());
    }
    report
}
