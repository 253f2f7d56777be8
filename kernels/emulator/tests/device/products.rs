//! Products of cuBLASLt, against f64.

use crate::gpu::{Buffer, Stream};
use bytemuck::Pod;
use cudarc::cublaslt::{result, sys};
use half::bf16;
use std::ffi::c_void;

const F32: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_32F;
const BF16: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_16BF;

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

trait Element: Pod {
    const TYPE: sys::cudaDataType;
    fn round(x: f32) -> Self;
    fn wide(self) -> f64;
}
impl Element for f32 {
    const TYPE: sys::cudaDataType = F32;
    fn round(x: f32) -> Self {
        x
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
}
impl Element for bf16 {
    const TYPE: sys::cudaDataType = BF16;
    fn round(x: f32) -> Self {
        bf16::from_f32(x)
    }
    fn wide(self) -> f64 {
        f64::from(self.to_f32())
    }
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    transpose_a: bool,
    transpose_b: bool,
    beta: f32,
    bias: bool,
    algorithm: usize,
}

struct Plan {
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    d: sys::cublasLtMatrixLayout_t,
}

impl Plan {
    /// Leading dimensions are `extra` more than the rows.
    fn new<I: Element, O: Element>(case: &Case, extra: usize, bias: u64) -> Self {
        let handle = result::create_handle().unwrap();
        let description =
            result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, F32).unwrap();
        fn set<T>(to: sys::cublasLtMatmulDesc_t, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) {
            let bytes = size_of::<T>();
            // SAFETY: the value has that many bytes; the description lives.
            unsafe {
                result::set_matmul_desc_attribute(to, attribute, (&raw const value).cast(), bytes).unwrap()
            };
        }
        use sys::cublasLtMatmulDescAttributes_t::*;
        set(description, CUBLASLT_MATMUL_DESC_TRANSA, i32::from(case.transpose_a));
        set(description, CUBLASLT_MATMUL_DESC_TRANSB, i32::from(case.transpose_b));
        if case.bias {
            set(description, CUBLASLT_MATMUL_DESC_EPILOGUE, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS);
            set(description, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
        }
        let layout = |kind, rows: usize, cols: usize| {
            result::create_matrix_layout(kind, rows as u64, cols as u64, (rows + extra) as i64).unwrap()
        };
        let swap = |on, rows, cols| if on { (cols, rows) } else { (rows, cols) };
        let ((ar, ac), (br, bc)) =
            (swap(case.transpose_a, case.m, case.k), swap(case.transpose_b, case.k, case.n));
        Self {
            handle,
            description,
            a: layout(I::TYPE, ar, ac),
            b: layout(I::TYPE, br, bc),
            d: layout(O::TYPE, case.m, case.n),
        }
    }

    fn algorithms(&self, workspace: usize) -> Vec<sys::cublasLtMatmulHeuristicResult_t> {
        let preference = result::create_matmul_pref().unwrap();
        let mut found = 0;
        // SAFETY: 16 results are asked for, and there is room for them; the handles live.
        unsafe {
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, attribute, (&raw const workspace).cast(), 8)
                .unwrap();
            let mut results: Vec<sys::cublasLtMatmulHeuristicResult_t> = vec![std::mem::zeroed(); 16];
            let (d, p) = (self.description, preference);
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                d,
                self.a,
                self.b,
                self.d,
                self.d,
                p,
                16,
                results.as_mut_ptr(),
                &mut found,
            );
            assert_eq!(status, sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
            result::destroy_matmul_pref(preference).unwrap();
            results.truncate(found as usize);
            results
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        unsafe {
            for layout in [self.a, self.b, self.d] {
                result::destroy_matrix_layout(layout).unwrap();
            }
            result::destroy_matmul_desc(self.description).unwrap();
            result::destroy_handle(self.handle).unwrap();
        }
    }
}

/// The product's bits as f64, the exact product, and how far the sum of magnitudes lets f32 be off.
fn run<I: Element, O: Element>(case: &Case) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (stream, extra) = (Stream::new(), 3);
    let (m, n, k) = (case.m, case.n, case.k);
    let matrix = |rows: usize, cols: usize, seed| {
        noise((rows + extra) * cols, seed).into_iter().map(I::round).collect::<Vec<_>>()
    };
    let a = if case.transpose_a { matrix(k, m, 1) } else { matrix(m, k, 1) };
    let b = if case.transpose_b { matrix(n, k, 2) } else { matrix(k, n, 2) };
    let c: Vec<O> = noise((m + extra) * n, 3).into_iter().map(O::round).collect();
    let bias: Vec<O> = noise(m, 4).into_iter().map(O::round).collect();
    let (da, db, dd, dbias) = (Buffer::from(&a), Buffer::from(&b), Buffer::from(&c), Buffer::from(&bias));
    let plan = Plan::new::<I, O>(case, extra, dbias.at);
    let workspace = Buffer::<u8>::fresh(32 << 20);
    let chosen = &plan.algorithms(32 << 20)[case.algorithm];
    let alpha = 0.5f32;
    // SAFETY: the buffers have the layouts' sizes, and outlive the wait.
    unsafe {
        let (x, y) = ((&raw const alpha).cast(), (&raw const case.beta).cast());
        let (c, d) = (dd.at as *const c_void, dd.at as *mut c_void);
        let (w, s) = (workspace.at as *mut c_void, stream.0 as sys::cudaStream_t);
        let (pa, pb) = (da.at as *const c_void, db.at as *const c_void);
        sys::cublasLtMatmul(
            plan.handle,
            plan.description,
            x,
            pa,
            plan.a,
            pb,
            plan.b,
            y,
            c,
            plan.d,
            d,
            plan.d,
            &chosen.algo,
            w,
            32 << 20,
            s,
        )
        .result()
        .unwrap();
    }
    stream.wait();
    let got = dd.read();
    let (mut values, mut exact, mut size) = (vec![], vec![], vec![]);
    for j in 0..n {
        for i in 0..m {
            let at = |l: usize| {
                let x = if case.transpose_a { a[l + i * (k + extra)] } else { a[i + l * (m + extra)] };
                let y = if case.transpose_b { b[j + l * (n + extra)] } else { b[l + j * (k + extra)] };
                x.wide() * y.wide()
            };
            let old = f64::from(case.beta) * c[i + j * (m + extra)].wide();
            let shift = if case.bias { bias[i].wide() } else { 0.0 };
            values.push(got[i + j * (m + extra)].wide());
            exact.push(0.5 * (0..k).map(at).sum::<f64>() + old + shift);
            size.push(0.5 * (0..k).map(|l| at(l).abs()).sum::<f64>() + old.abs() + shift.abs());
        }
    }
    (values, exact, size)
}

#[test]
fn products_agree_with_f64() {
    let sizes = [(1, 1, 1), (16, 4, 8), (17, 5, 33), (40, 23, 130), (3, 64, 257)];
    for (i, (m, n, k)) in sizes.into_iter().enumerate() {
        for variant in 0..8 {
            let (transpose_a, transpose_b, bias) = (variant & 1 != 0, variant & 2 != 0, variant & 4 != 0);
            let beta = [0.0, 1.0, -0.25][(i + variant) % 3];
            let case = Case { m, n, k, transpose_a, transpose_b, beta, bias, algorithm: (i + variant) % 8 };
            // An f32 sum of k numbers is off by at most k ulp of the sum of magnitudes; bf16 rounds at 2^-8.
            let f32_error = (k + 4) as f64 * f64::from(f32::EPSILON) / 2.0;
            let check = |(values, exact, size): (Vec<f64>, Vec<f64>, Vec<f64>), rounding: f64| {
                for ((v, e), s) in values.iter().zip(&exact).zip(&size) {
                    assert!(
                        (v - e).abs() <= f32_error * s + rounding * e.abs(),
                        "{m} {n} {k}, variant {variant}: {v} for {e}"
                    );
                }
            };
            check(run::<f32, f32>(&case), 0.0);
            check(run::<bf16, f32>(&case), 0.0);
            check(run::<bf16, bf16>(&case), 1.01 / 256.0);
        }
    }
}

#[test]
fn another_algorithm_sums_in_another_order() {
    let case = |algorithm| Case {
        m: 33,
        n: 9,
        k: 500,
        transpose_a: false,
        transpose_b: true,
        beta: 0.0,
        bias: false,
        algorithm,
    };
    let values: Vec<Vec<f64>> = (0..8).map(|a| run::<f32, f32>(&case(a)).0).collect();
    for (i, v) in values.iter().enumerate() {
        assert_eq!(*v, run::<f32, f32>(&case(i)).0, "the same again");
        assert!(values[..i].iter().all(|other| other != v));
    }
}

#[test]
#[ignore = "run by `matrices_that_leave_their_buffer_are_told` in a process of its own"]
fn leaves() {
    let case = Case {
        m: 8,
        n: 8,
        k: 8,
        transpose_a: false,
        transpose_b: false,
        beta: 0.0,
        bias: false,
        algorithm: 0,
    };
    let (stream, a, b) = (Stream::new(), Buffer::from(&[1f32; 64]), Buffer::from(&[1f32; 63]));
    let (d, plan, one) = (Buffer::<f32>::fresh(64), Plan::new::<f32, f32>(&case, 0, 0), 1f32);
    let algorithm = plan.algorithms(0)[0].algo;
    // SAFETY: B's buffer is one number short: the emulator reports it and ends the process.
    unsafe {
        let (x, d, w) = ((&raw const one).cast(), d.at as *mut c_void, std::ptr::null_mut());
        let (a, b, s) = (a.at as *const c_void, b.at as *const c_void, stream.0 as sys::cudaStream_t);
        let (p, zero) = (&plan, (&raw const case.beta).cast());
        sys::cublasLtMatmul(
            p.handle,
            p.description,
            x,
            a,
            p.a,
            b,
            p.b,
            zero,
            d,
            p.d,
            d,
            p.d,
            &algorithm,
            w,
            0,
            s,
        )
        .result()
        .unwrap();
    }
    stream.wait();
}

#[test]
fn matrices_that_leave_their_buffer_are_told() {
    let (text, passed) = crate::faults::child("products::leaves", &[]);
    assert!(!passed && text.contains("cublasLtMatmul: B, 256 bytes at"), "{text}");
    assert!(text.contains("past the end of the buffer of 252 bytes"), "{text}");
}

#[test]
fn workspace_limits_the_choice() {
    crate::gpu::open();
    let case = Case {
        m: 8,
        n: 8,
        k: 8,
        transpose_a: false,
        transpose_b: false,
        beta: 0.0,
        bias: false,
        algorithm: 0,
    };
    let plan = Plan::new::<bf16, bf16>(&case, 0, 0);
    for (limit, count) in [(0, 2), (1 << 20, 5), (32 << 20, 8)] {
        let found = plan.algorithms(limit);
        assert_eq!(found.len(), count);
        assert!(found.iter().all(|r| r.workspaceSize <= limit));
    }
    let other = Plan::new::<f32, f32>(&case, 0, 0);
    let foreign = plan.algorithms(0)[0].algo;
    let check = |plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t| {
        // SAFETY: the handles live, the pointers are valid.
        unsafe {
            let mut result = std::mem::zeroed();
            sys::cublasLtMatmulAlgoCheck(
                plan.handle,
                plan.description,
                plan.a,
                plan.b,
                plan.d,
                plan.d,
                algorithm,
                &mut result,
            )
        }
    };
    assert_eq!(check(&plan, &foreign), sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
    assert_eq!(check(&other, &foreign), sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE);
    assert_eq!(
        check(&plan, &sys::cublasLtMatmulAlgo_t { data: [0; 8] }),
        sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE
    );
}
