//! What a user is told where a GPU cannot be used, or fails.

use super::emulated;
use crate::cli::Workplace;

/// The message of a training on the GPU that must fail.
fn refused(environment: &[(&str, &str)]) -> Option<String> {
    let place = Workplace::with_corpus();
    Some(emulated(&place, "--config tiny.toml --device cuda", environment)?.failed())
}

#[test]
fn each_fault_has_its_message() {
    for (variable, value, said) in [
        ("EMULATOR_DRIVER", "12020", "driver"),
        ("EMULATOR_DEVICES", "0", "CUDA_VISIBLE_DEVICES"),
        ("EMULATOR_ARCH", "70", "compute capability 7.0; 8.0 or newer is needed"),
        ("EMULATOR_MEMORY", "1000000", "choose a smaller model or batch"),
        ("EMULATOR_MEMORY", "33700000", "of memory"),
        ("EMULATOR_FAIL", "cuMemAlloc_v2:9:2", "cannot allocate"),
        ("EMULATOR_FAIL", "cuLaunchKernel:40:700", "compute-sanitizer"),
        ("EMULATOR_FAIL", "cuModuleLoadData:1:209", "do not load"),
        ("EMULATOR_FAIL", "cuInit:1:999", "driver"),
        ("EMULATOR_FAIL", "cuEventSynchronize:3:719", "the GPU failed"),
    ] {
        let Some(message) = refused(&[(variable, value)]) else { return };
        println!("{variable}={value}: {message}");
        assert!(message.contains(said), "{variable}={value}: {message}");
    }
}

#[test]
fn auto_takes_the_cpu_and_says_why() {
    let place = Workplace::with_corpus();
    let Some(ran) =
        emulated(&place, "--config tiny.toml --device auto --steps 2", &[("EMULATOR_DEVICES", "0")])
    else {
        return;
    };
    assert!(ran.stderr.contains("device auto: the CPU, because"), "{}", ran.stderr);
    ran.done();
    let Some(ran) = emulated(&place, "--config tiny.toml --device auto --steps 2 --run gpu", &[]) else {
        return;
    };
    assert!(ran.stderr.contains("device auto: GPU 0, "), "{}", ran.stderr);
    ran.done();
}

#[test]
fn doctor_tells_what_is_there() {
    let place = Workplace::new();
    let Some(ran) = emulated(&place, "doctor --kernels", &[]) else { return };
    let told = ran.done();
    for said in [
        "GPU        0: ",
        "kernels    ",
        "sm_90a",
        "layernorm",
        "--device cuda and --device auto train on GPU 0.",
    ] {
        assert!(told.contains(said), "{said} is missing in\n{told}");
    }
    let old = emulated(&place, "doctor", &[("EMULATOR_ARCH", "75")]).unwrap();
    assert_eq!(old.code, Some(1), "{}", old.stdout);
    assert!(old.stdout.contains("--device cuda is refused: "), "{}", old.stdout);
}

#[test]
fn without_a_driver_everything_says_so() {
    let place = Workplace::with_corpus();
    if kernels::cuda::probe().driver.cuda.is_some() {
        println!("skipped: this machine has a driver");
        return;
    }
    let told = place.line("doctor").done();
    assert!(told.contains("--device auto trains on the CPU; --device cuda is refused: "), "{told}");
    for line in [
        "--config tiny.toml --device cuda",
        "--config tiny.toml --gpus 1",
        "verify --device cuda x.safetensors",
    ] {
        let message = place.line(line).failed();
        assert!(
            message.contains("libcuda.so.1") || message.contains("built without GPU kernels"),
            "{line}: {message}"
        );
    }
}
