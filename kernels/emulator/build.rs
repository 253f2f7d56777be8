//! Compiles the kernels and the emulator with the machine's C++ compiler. An object is compiled again only if a file that
//! it was made of is newer, or the command differs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::SystemTime;

const WARNINGS: &[&str] = &["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-psabi"];
const COMMON: &[&str] = &["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"];
// A kernel's accesses are checked for alignment, its arrays for their bounds: the device traps on the first and does
// anything on the second. driver/fault.cpp has the functions that the checks call.
const CHECKS: &[&str] = &["-fsanitize=alignment,bounds", "-fno-sanitize-recover=all"];

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
    let cu = here.parent().expect("the crate lies in kernels/").join("cu");
    for watched in
        ["include", "driver", "cublaslt", "nccl", "tests"].map(|f| here.join(f)).iter().chain([&cu])
    {
        println!("cargo:rerun-if-changed={}", watched.display());
    }
    println!("cargo:rerun-if-changed=build.rs");

    let build =
        Build { compiler: compiler(), include: vec![here.join("include"), here.join("driver"), cu.clone()] };
    let jobs = [
        ("cu", sources(&cu, "cu"), true),
        ("tests", sources(&here.join("tests"), "cu"), true),
        ("driver", sources(&here.join("driver"), "cpp"), false),
        ("cublaslt", sources(&here.join("cublaslt"), "cpp"), false),
        ("nccl", sources(&here.join("nccl"), "cpp"), false),
    ];
    let objects: Vec<(&str, Vec<PathBuf>)> = jobs
        .iter()
        .map(|(group, files, _)| (*group, files.iter().map(|f| object_of(&out, group, f)).collect()))
        .collect();
    let work = jobs.iter().flat_map(|(group, files, kernel)| files.iter().map(move |f| (*group, f, *kernel)));
    build
        .compile_all(work.map(|(group, f, kernel)| (f.clone(), object_of(&out, group, f), kernel)).collect());

    let libraries = out.join("libraries");
    fs::create_dir_all(&libraries).expect("the output folder is writable");
    let of = |group: &str| {
        objects.iter().find(|(g, _)| *g == group).map(|(_, o)| o.as_slice()).unwrap_or_default()
    };
    let driver: Vec<PathBuf> = of("driver").iter().chain(of("cu")).cloned().collect();
    build.link(&libraries, "libcuda.so.1", &driver, &[]);
    build.link(&libraries, "libcuda.so", &[], &["libcuda.so.1"]);
    build.link(&libraries, "libcublasLt.so.13", of("cublaslt"), &["libcuda.so.1"]);
    build.link(&libraries, "libcublasLt.so", &[], &["libcublasLt.so.13"]);
    build.link(&libraries, "libnccl.so.2", of("nccl"), &["libcuda.so.1"]);
    build.link(&libraries, "libemulator_tests.so", of("tests"), &["libcuda.so.1"]);
    println!("cargo:rustc-env=EMULATOR_LIBRARIES={}", libraries.display());
}

struct Build {
    compiler: cc::Tool,
    include: Vec<PathBuf>,
}

impl Build {
    fn compile_all(&self, mut jobs: Vec<(PathBuf, PathBuf, bool)>) {
        let threads = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
        jobs.reverse();
        let jobs = Mutex::new(jobs);
        let next = || jobs.lock().expect("no thread panics while it holds the lock").pop();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((source, object, kernel)) = next() {
                        self.compile(&source, &object, kernel);
                    }
                });
            }
        });
    }

    fn compile(&self, source: &Path, object: &Path, kernel: bool) {
        let mut command = self.compiler.to_command();
        command.args(COMMON).args(WARNINGS).arg(if kernel { "-O2" } else { "-O3" });
        if kernel {
            command.args(CHECKS);
        }
        for folder in &self.include {
            command.arg("-I").arg(folder);
        }
        command.args(["-x", "c++", "-MMD", "-c"]).arg(source).arg("-o").arg(object);
        let line = format!("{command:?}");
        let record = object.with_extension("command");
        if fs::read_to_string(&record).is_ok_and(|old| old == line) && up_to_date(object) {
            return;
        }
        let _ = fs::remove_file(&record);
        run(command, &format!("compiling {}", source.display()));
        fs::write(&record, line).expect("the output folder is writable");
    }

    fn link(&self, folder: &Path, name: &str, objects: &[PathBuf], needs: &[&str]) {
        let mut command = self.compiler.to_command();
        command
            .arg("-shared")
            .arg(format!("-Wl,-soname,{name}"))
            .args(["-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]);
        command.arg("-o").arg(folder.join(name)).args(objects).args(needs.iter().map(|n| folder.join(n)));
        run(command, &format!("linking {name}"));
    }
}

fn compiler() -> cc::Tool {
    let mut build = cc::Build::new();
    build.cpp(true).cargo_metadata(false).warnings(false).debug(false).opt_level(2);
    // The machine that builds is the one that tests: the kernels' fmaf() is then one instruction.
    let native = std::env::var("TARGET") == std::env::var("HOST");
    #[cfg(target_arch = "x86_64")]
    if native && std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        build.flag_if_supported("-mavx2").flag_if_supported("-mfma");
    }
    let _ = native;
    build
        .try_get_compiler()
        .unwrap_or_else(|error| panic!("the emulator of the GPU kernels needs a C++ compiler: {error}"))
}

fn object_of(out: &Path, group: &str, source: &Path) -> PathBuf {
    let name = source.file_stem().expect("a source has a name").to_string_lossy();
    out.join(format!("{group}_{name}.o"))
}

fn sources(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    let mut found: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

/// Whether the object is newer than every file that the compiler's list of dependencies (`-MMD`) names.
fn up_to_date(object: &Path) -> bool {
    let time = |p: &Path| fs::metadata(p).and_then(|m| m.modified()).ok();
    let (Some(made), Ok(list)) = (time(object), fs::read_to_string(object.with_extension("d"))) else {
        return false;
    };
    let list = list.replace("\\\n", " ");
    let Some((_, files)) = list.split_once(": ") else { return false };
    let newer = |file: &str| time(Path::new(file)).is_none_or(|t: SystemTime| t > made);
    !files.split_whitespace().any(newer)
}

fn run(mut command: Command, what: &str) {
    let output = command.output().unwrap_or_else(|e| panic!("{what}: {:?}: {e}", command.get_program()));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} failed:\n{command:?}\n{text}");
    for line in text.lines().filter(|l| l.contains("warning:")) {
        println!("cargo:warning={line}");
    }
}
