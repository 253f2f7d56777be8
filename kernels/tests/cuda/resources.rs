//! What the compiler says of the kernels in this binary.

use kernels::cuda::{ARCHS, IMAGES, resources};

#[test]
fn no_kernel_spills_registers() {
    if IMAGES.is_empty() {
        println!("skipped: built without nvcc");
        return;
    }
    let all = resources();
    // Every file holds kernels, and each of them is compiled for each architecture.
    let archs = ARCHS.split(',').count();
    assert!(all.len() >= IMAGES.len() * archs && all.len().is_multiple_of(archs), "{} reports", all.len());
    for r in &all {
        assert!(r.registers > 0, "{} for {}: no report", r.kernel, r.arch);
        assert_eq!((r.spills, r.stack), (0, 0), "{} for {}: bytes spilled, bytes of stack", r.kernel, r.arch);
    }
}
