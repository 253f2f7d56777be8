//! One product as cuBLASLt takes it: descriptions of the matrices, and an algorithm.

use super::library::{Library, Refusal, words};
use super::{Algorithm, Kind, WORKSPACE};
use crate::backend::Gelu;
use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulHeuristicResult_t as Heuristic,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtReductionScheme_t as Reduction,
    cublasStatus_t as Status, cudaDataType,
};
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;

/// Which product of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    Forward,
    Dgrad,
    Wgrad,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "linear_forward",
            Self::Dgrad => "linear_dgrad",
            Self::Wgrad => "linear_wgrad",
        }
    }
}

/// All that a plan depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub family: Family,
    /// Type of A and B, and of D too, except that gradients of weights are f32.
    pub kind: Kind,
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// A bias of D's type is added.
    pub bias: bool,
    /// D is added to.
    pub accumulate: bool,
    /// What is fused: forward's GELU, or after dgrad that of the layer before, backward. cuBLASLt does it apart.
    pub gelu: Option<Gelu>,
    /// What the addresses of A, B and D (with the bias and GELU's input) are multiples of, in bytes.
    pub alignment: [u16; 3],
}

/// Addresses on the GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub a: u64,
    pub b: u64,
    pub d: u64,
    /// Where the shape has one.
    pub bias: u64,
    /// With GELU: its input, which forward writes and backward reads.
    pub kept: u64,
    /// With GELU, backward: floats that the column sums of D are added to.
    pub sums: u64,
}

impl Shape {
    /// The shape with the alignment of these operands. Few values are told apart: 256 bytes is what allocations have, 16 what the
    /// widest load needs.
    pub(super) fn aligned(mut self, at: &Operands) -> Self {
        let of = |address: u64| match 1u64 << address.trailing_zeros().min(8) {
            n @ ..16 => n as u16,
            16..256 => 16,
            _ => 256,
        };
        self.alignment = [of(at.a), of(at.b), of(at.d | at.bias | at.kept)];
        self
    }

    pub(super) fn output_kind(&self) -> Kind {
        if self.family == Family::Wgrad { Kind::F32 } else { self.kind }
    }

    pub(super) fn output_bytes(&self) -> usize {
        let [_, _, d] = self.layouts();
        d.rows * d.cols * if self.output_kind() == Kind::F32 { 4 } else { 2 }
    }

    /// A, B and D as they lie in memory, column-major without gaps.
    fn layouts(&self) -> [Matrix; 3] {
        let Self { rows, inputs, outputs, .. } = *self;
        let [w, x, y] =
            [(inputs, outputs), (inputs, rows), (outputs, rows)].map(|(rows, cols)| Matrix { rows, cols });
        match self.family {
            Family::Forward => [w, x, y],
            Family::Dgrad => [w, y, x],
            Family::Wgrad => [x, y, w],
        }
    }

    /// Whether A and B are transposed.
    fn transposed(&self) -> [bool; 2] {
        match self.family {
            Family::Forward => [true, false],
            Family::Dgrad => [false, false],
            Family::Wgrad => [false, true],
        }
    }
}

#[derive(Clone, Copy)]
struct Matrix {
    rows: usize,
    cols: usize,
}

/// The description of a matrix.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(kind: Kind, matrix: Matrix) -> Result<Self, Refusal> {
        let Matrix { rows, cols } = matrix;
        result::create_matrix_layout(data_type(kind), rows as u64, cols as u64, rows as i64)
            .map(Self)
            .map_err(|error| words(error.0))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The description of an operation.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, Refusal> {
        result::create_matmul_desc(Compute::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)
            .map(Self)
            .map_err(|error| words(error.0))
    }

    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), Refusal> {
        let at = std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the caller passes the attribute's type; it is copied
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, at, size_of::<T>()) }
            .map_err(|error| words(error.0))
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What algorithms may do.
struct Wishes(sys::cublasLtMatmulPreference_t);

impl Wishes {
    fn new() -> Result<Self, Refusal> {
        result::create_matmul_pref().map(Self).map_err(|error| words(error.0))
    }

    fn set<T>(&self, attribute: Preference, value: &T) -> Result<(), Refusal> {
        let at = std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the caller passes the attribute's type; it is copied
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, at, size_of::<T>()) }
            .map_err(|error| words(error.0))
    }
}

impl Drop for Wishes {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// A product ready to be queued.
pub(super) struct Plan {
    pub shape: Shape,
    pub algorithm: Algorithm,
    description: Description,
    a: Layout,
    b: Layout,
    d: Layout,
}

// SAFETY: the descriptions are plain memory of the library, used by one thread at a time
unsafe impl Send for Plan {}

impl Plan {
    /// Without an algorithm.
    pub fn new(shape: Shape) -> Result<Self, Refusal> {
        let [a, b, d] = shape.layouts();
        let description = Description::new()?;
        // CUBLAS_OP_N is 0 and CUBLAS_OP_T is 1; the bindings leave the type out.
        let [transpose_a, transpose_b] = shape.transposed().map(i32::from);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &transpose_a)?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &transpose_b)?;
        if shape.bias {
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &Epilogue::CUBLASLT_EPILOGUE_BIAS)?;
        }
        Ok(Self {
            shape,
            algorithm: Algorithm { data: [0; 8] },
            description,
            a: Layout::new(shape.kind, a)?,
            b: Layout::new(shape.kind, b)?,
            d: Layout::new(shape.output_kind(), d)?,
        })
    }

    /// Algorithms for the shape, the one that should be fastest first; at least one.
    pub fn answers(&self, library: &Library, most: usize) -> Result<Vec<Algorithm>, Refusal> {
        let wishes = self.wishes()?;
        let nothing = Heuristic {
            algo: Algorithm { data: [0; 8] },
            workspaceSize: 0,
            state: Status::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut found = vec![nothing; most];
        let mut count = 0;
        // SAFETY: all descriptions are alive, and `found` has room for `most` answers
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                library.handle,
                self.description.0,
                self.a.0,
                self.b.0,
                self.d.0,
                self.d.0,
                wishes.0,
                most as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        found.truncate(count.max(0) as usize);
        found.retain(|answer| {
            answer.state == Status::CUBLAS_STATUS_SUCCESS && answer.workspaceSize <= WORKSPACE
        });
        match status {
            Status::CUBLAS_STATUS_SUCCESS if found.is_empty() => {
                Err("that it has no algorithm for it".into())
            }
            Status::CUBLAS_STATUS_SUCCESS => Ok(found.iter().map(|answer| answer.algo).collect()),
            status => Err(words(status)),
        }
    }

    fn wishes(&self) -> Result<Wishes, Refusal> {
        let wishes = Wishes::new()?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        if self.shape.output_kind() == Kind::Bf16 {
            // Where a sum is split its parts are added in f32; in bf16 each addition would round.
            let mask = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
            wishes.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &mask)?;
        }
        use Preference::{
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES as A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES as B,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES as C, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES as D,
        };
        let [a, b, d] = self.shape.alignment.map(u32::from);
        for (attribute, bytes) in [(A, a), (B, b), (C, d), (D, d)] {
            wishes.set(attribute, &bytes)?;
        }
        Ok(wishes)
    }

    /// The algorithm, if it can do just this.
    pub fn check(&self, library: &Library, algorithm: Algorithm) -> Option<Algorithm> {
        let mut found = Heuristic {
            algo: algorithm,
            workspaceSize: 0,
            state: Status::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let (a, b, d) = (self.a.0, self.b.0, self.d.0);
        // SAFETY: all descriptions are alive; the library reads any 64 bytes as an algorithm and says whether they are one
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                library.handle,
                self.description.0,
                a,
                b,
                d,
                d,
                &algorithm,
                &mut found,
            )
        };
        (status == Status::CUBLAS_STATUS_SUCCESS && found.workspaceSize <= WORKSPACE).then_some(algorithm)
    }

    /// Queues the product.
    ///
    /// # Safety
    /// The operands' addresses hold for matrices of the shape, and `workspace` for [`WORKSPACE`] bytes that no other stream
    /// uses.
    pub unsafe fn run(
        &mut self,
        library: &Library,
        at: &Operands,
        workspace: u64,
        stream: CUstream,
    ) -> Result<(), Refusal> {
        if self.shape.bias {
            self.description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &at.bias)?;
        }
        let (alpha, beta) = (1f32, if self.shape.accumulate { 1f32 } else { 0.0 });
        // SAFETY: the caller's; alpha and beta are read before the call returns
        unsafe {
            result::matmul(
                library.handle,
                self.description.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                at.a as *const c_void,
                self.a.0,
                at.b as *const c_void,
                self.b.0,
                at.d as *const c_void,
                self.d.0,
                at.d as *mut c_void,
                self.d.0,
                &self.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(|error| words(error.0))
    }
}

fn data_type(kind: Kind) -> cudaDataType {
    match kind {
        Kind::F32 => cudaDataType::CUDA_R_32F,
        Kind::Bf16 => cudaDataType::CUDA_R_16BF,
    }
}
