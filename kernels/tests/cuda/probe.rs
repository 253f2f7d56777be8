use crate::check::*;
use kernels::cuda::{Device, IMAGES, Image, probe};
use std::process::Command;

/// What the child processes below print.
#[test]
fn what_is_there() {
    if std::env::var_os("PROBE").is_none() {
        return;
    }
    let found = probe();
    println!("{found:#?}");
    let images = [Image::named("emulated")];
    let opened = if IMAGES.is_empty() { Device::open_with(0, &images) } else { Device::open(0) };
    match opened {
        Ok(device) => println!("opened {}", device.name()),
        Err(error) => println!("refused: {error}"),
    }
    println!("trouble: {:?}", found.trouble(0).map(|t| format!("{} | {}", t.problem, t.remedy)));
}

/// Probes in a process of its own, with the emulator's libraries or without.
fn child(emulated: bool, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["probe::what_is_there", "--exact", "--nocapture", "--test-threads=1"]);
    command.env("PROBE", "1").env_remove("LD_LIBRARY_PATH");
    if emulated {
        command.env("LD_LIBRARY_PATH", emulator::LIBRARIES);
    }
    let run = command.envs(variables.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    said
}

#[track_caller]
fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{word:?} is not in\n{said}");
    }
}

#[test]
fn a_gpu_is_found() {
    if !is_emulated(&cuda::<f32>()) {
        return;
    }
    let said = child(true, &[]);
    says(&said, &["cuda: Some(\n            \"13.0\"", "Emulator sm_90", "\"13.0.0\"", "libcublasLt.so"]);
    // NCCL may be on this machine or not; one GPU does not need it.
    says(&said, &["nccl: LibraryProbe"]);
    says(&said, &["opened Emulator"]);
    says(&said, &[if IMAGES.is_empty() { "built without GPU kernels" } else { "trouble: None\n" }]);
}

#[test]
fn what_is_missing_is_told() {
    if !is_emulated(&cuda::<f32>()) {
        return;
    }
    let said = child(false, &[]);
    says(&said, &["refused: ", "no NVIDIA driver (libcuda.so.1) was found", "install version 580 or newer"]);
    says(&said, &["cuBLASLt (libcublasLt.so.13) was not found"]);
    let cases = [
        ("EMULATOR_DRIVER", "12080", ["it runs CUDA 12.8, and this build needs 13.0", "580"]),
        ("EMULATOR_DEVICES", "0", ["refused: the NVIDIA driver cannot start", "CUDA_VISIBLE_DEVICES"]),
        ("EMULATOR_ARCH", "75", ["compute capability 7.5", "8.0"]),
        ("EMULATOR_FAIL", "cuDevicePrimaryCtxRetain:1:46", ["GPU 0 cannot be opened", "for itself"]),
        ("EMULATOR_FAIL", "cuDevicePrimaryCtxRetain:2:46", ["cannot use GPU 0", "for itself"]),
        ("EMULATOR_FAIL", "cuInit:1:803", ["cannot start", "restart the machine"]),
    ];
    for (variable, value, words) in cases {
        says(&child(true, &[(variable, value)]), &words);
    }
}
