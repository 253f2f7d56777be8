//! What the compiler says of the kernels in this binary.

use kernels::cuda::{ARCHS, IMAGES, resources};
use std::collections::BTreeMap;

#[test]
fn no_kernel_spills_registers() {
    if IMAGES.is_empty() {
        println!("skipped: built without nvcc");
        return;
    }
    let all = resources();
    // Every file holds kernels, and each of them is compiled for each architecture, or for the one that it is for alone.
    let mut archs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    all.iter().for_each(|r| archs.entry(&r.kernel).or_default().push(r.arch.trim_start_matches("sm_")));
    assert!(archs.len() >= IMAGES.len(), "{} kernels in {} files", archs.len(), IMAGES.len());
    let mut every: Vec<&str> = ARCHS.split(',').map(str::trim).collect();
    every.sort();
    for (kernel, mut archs) in archs {
        archs.sort();
        assert!(archs == ["90a"] || archs == every, "{kernel} is compiled for {archs:?}");
    }
    for r in &all {
        assert_eq!(r.remarks, [""; 0], "{} for {}", r.kernel, r.arch);
        assert!(r.registers > 0, "{} for {}: no report", r.kernel, r.arch);
        assert_eq!((r.spills, r.stack), (0, 0), "{} for {}: bytes spilled, bytes of stack", r.kernel, r.arch);
    }
}
