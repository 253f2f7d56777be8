//! The ops on the CPU, generic over `f32` (the product) and `f64` (the oracle).
//!
//! Loops run on the current rayon pool in blocks whose sizes depend on the op's sizes alone, and sums over blocks
//! are added in order: results do not depend on the number of threads. Inner loops are plain Rust that the compiler
//! vectorizes, compiled for the machine's widest vectors by [`math::dispatch`].

mod attention;
mod cross_entropy;
mod embedding;
mod gelu;
mod layernorm;
mod linear;
pub mod math;
pub mod memory;
mod optim;
mod rows;

use crate::backend::*;
use crate::error::check_len;
use crate::{Error, Result, Scalar};
use bytemuck::Pod;
use memory::{Buffer, Scratch};
use std::marker::PhantomData;
use std::ops::Range;

/// The CPU as a device.
pub struct Cpu<T> {
    scratch: Scratch,
    kind: PhantomData<T>,
}

impl<T: Scalar> Cpu<T> {
    /// A backend that works on the rayon pool in which its ops are called.
    pub fn new() -> Self {
        Self { scratch: Scratch::default(), kind: PhantomData }
    }
}

impl<T: Scalar> Default for Cpu<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Scalar> Backend for Cpu<T> {
    const HOST: bool = true;
    type Elem = T;
    type Acc = T;
    type Mem<U: Pod + Send + Sync> = Buffer<U>;
    type Ref<'a, U: 'a + Send + Sync> = &'a [U];
    type Mut<'a, U: 'a + Send + Sync> = &'a mut [U];
    type Mark = ();
    type Pending = Vec<T>;
    type Weights = Buffer<T>;

    fn describe(&self) -> String {
        let vectors = format!("{:?}", pulp::Arch::new());
        let vectors = vectors.split(['(', ' ']).next().unwrap_or_default().to_string();
        let threads = rayon::current_num_threads();
        let s = if threads == 1 { "" } else { "s" };
        format!("CPU, {} bits, {threads} thread{s}, vectors {vectors}", 8 * size_of::<T>())
    }

    fn remarks(&self, _: usize) -> Vec<String> {
        Vec::new()
    }

    fn memory(&self) -> Option<u64> {
        memory::total()
    }

    fn elems(&self, what: &'static str, len: usize) -> Result<Buffer<T>> {
        Buffer::zeroed(what, len)
    }
    fn zeros<U: Pod + Send + Sync>(&self, what: &'static str, len: usize) -> Result<Buffer<U>> {
        Buffer::zeroed(what, len)
    }
    fn len<U: Pod + Send + Sync>(mem: &Buffer<U>) -> usize {
        mem.len()
    }
    fn at<U: Pod + Send + Sync>(mem: &Buffer<U>, range: Range<usize>) -> &[U] {
        &mem.as_slice()[range]
    }
    fn at_mut<U: Pod + Send + Sync>(mem: &mut Buffer<U>, range: Range<usize>) -> &mut [U] {
        &mut mem.as_mut_slice()[range]
    }
    fn shorten<'short, 'long: 'short, U: 'long + Send + Sync>(r: &'long [U]) -> &'short [U] {
        r
    }
    fn upload<U: Pod + Send + Sync>(&self, dst: &mut [U], src: &[U]) -> Result<()> {
        check_len("upload", "src", src.len(), dst.len())?;
        dst.copy_from_slice(src);
        Ok(())
    }
    fn download<U: Pod + Send + Sync>(&self, src: &[U], dst: &mut [U]) -> Result<()> {
        check_len("download", "dst", dst.len(), src.len())?;
        dst.copy_from_slice(src);
        Ok(())
    }
    fn download_elems(&self, src: &[T], dst: &mut [f64]) -> Result<()> {
        check_len("download_elems", "dst", dst.len(), src.len())?;
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst = src.to_f64();
        }
        Ok(())
    }
    // Ops are done when they return.
    fn mark(&self) -> Result<()> {
        Ok(())
    }
    fn wait(&self, (): &()) -> Result<()> {
        Ok(())
    }
    fn upload_beside(&self, dst: &mut [u32], src: &[u32], (): &()) -> Result<()> {
        self.upload(dst, src)
    }
    fn read_later(&self, parts: &[&[T]]) -> Result<Vec<T>> {
        Ok(parts.concat())
    }
    fn read(&self, pending: Vec<T>) -> Result<Vec<T>> {
        Ok(pending)
    }
    fn begin_step(&self) -> Result<()> {
        Ok(())
    }
    fn end_step(&self) -> Result<()> {
        Ok(())
    }
    fn clear<U: Pod + Send + Sync>(&self, dst: &mut [U]) -> Result<()> {
        math::fill(dst, U::zeroed());
        Ok(())
    }

    fn weights(&self, len: usize) -> Result<Buffer<T>> {
        Buffer::zeroed("weights", len)
    }
    fn weight(weights: &Buffer<T>, range: Range<usize>) -> &[T] {
        &weights.as_slice()[range]
    }
    fn master(weights: &Buffer<T>, range: Range<usize>) -> &[T] {
        &weights.as_slice()[range]
    }
    fn upload_weights(&self, weights: &mut Buffer<T>, at: usize, src: &[T]) -> Result<()> {
        let have = weights.len();
        let Some(dst) = weights.as_mut_slice().get_mut(at..at.saturating_add(src.len())) else {
            let what = format!("{} elements at {at} reach beyond the table of {have}", src.len());
            return Err(Error::Unsupported { op: "upload_weights", what });
        };
        dst.copy_from_slice(src);
        Ok(())
    }

    #[inline(never)]
    fn embedding_forward(&self, args: EmbeddingForward<'_, Self>) -> Result<()> {
        embedding::forward(args)
    }
    #[inline(never)]
    fn embedding_backward(&self, args: EmbeddingBackward<'_, Self>) -> Result<()> {
        embedding::backward(&self.scratch, args)
    }
    #[inline(never)]
    fn layernorm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()> {
        layernorm::forward(args)
    }
    #[inline(never)]
    fn layernorm_backward(&self, args: LayerNormBackward<'_, Self>) -> Result<()> {
        layernorm::backward(&self.scratch, args)
    }
    #[inline(never)]
    fn linear_forward(&self, args: LinearForward<'_, Self>) -> Result<()> {
        linear::forward(args)
    }
    #[inline(never)]
    fn linear_gelu_forward(&self, args: LinearGeluForward<'_, Self>) -> Result<()> {
        linear::gelu_forward(args)
    }
    #[inline(never)]
    fn linear_gelu_dgrad(&self, args: LinearGeluDgrad<'_, Self>) -> Result<()> {
        linear::gelu_dgrad(&self.scratch, args)
    }
    #[inline(never)]
    fn linear_dgrad(&self, args: LinearDgrad<'_, Self>) -> Result<()> {
        linear::dgrad(args)
    }
    #[inline(never)]
    fn linear_wgrad(&self, args: LinearWgrad<'_, Self>) -> Result<()> {
        linear::wgrad(args)
    }
    #[inline(never)]
    fn bias_grad(&self, args: BiasGrad<'_, Self>) -> Result<()> {
        linear::bias_grad(&self.scratch, args)
    }
    #[inline(never)]
    fn gelu_forward(&self, args: GeluForward<'_, Self>) -> Result<()> {
        gelu::forward(args)
    }
    #[inline(never)]
    fn gelu_backward(&self, args: GeluBackward<'_, Self>) -> Result<()> {
        gelu::backward(&self.scratch, args)
    }
    #[inline(never)]
    fn attention_forward(&self, args: AttentionForward<'_, Self>) -> Result<()> {
        attention::forward(&self.scratch, args)
    }
    #[inline(never)]
    fn attention_backward(&self, args: AttentionBackward<'_, Self>) -> Result<()> {
        attention::backward(&self.scratch, args)
    }
    #[inline(never)]
    fn gather_rows(&self, args: GatherRows<'_, Self>) -> Result<()> {
        rows::gather(args)
    }
    #[inline(never)]
    fn scatter_add_rows(&self, args: ScatterAddRows<'_, Self>) -> Result<()> {
        rows::scatter_add(args)
    }
    #[inline(never)]
    fn cross_entropy(&self, args: CrossEntropy<'_, Self>) -> Result<()> {
        cross_entropy::cross_entropy(&self.scratch, args)
    }
    #[inline(never)]
    fn tanh_forward(&self, args: TanhForward<'_, Self>) -> Result<()> {
        gelu::tanh_forward(args)
    }
    #[inline(never)]
    fn tanh_backward(&self, args: TanhBackward<'_, Self>) -> Result<()> {
        gelu::tanh_backward(args)
    }

    #[inline(never)]
    fn square_sums(&self, sums: &mut [f64], x: &[T]) -> Result<()> {
        optim::square_sums(sums, x)
    }
    #[inline(never)]
    fn root_of_sum(&self, norm: &mut [T], sums: &[f64]) -> Result<()> {
        optim::root_of_sum(norm, sums)
    }
    #[inline(never)]
    fn find_nonfinite(&self, place: &mut [T], x: &[T], norm: &[T]) -> Result<()> {
        optim::find_nonfinite(place, x, norm)
    }
    #[inline(never)]
    fn clip(&self, x: &mut [T], norm: &[T], max_norm: f64) -> Result<()> {
        optim::clip(x, norm, max_norm)
    }
    #[inline(never)]
    fn adamw(&self, args: OptimizerStep<'_, Self>) -> Result<()> {
        optim::adamw(args)
    }
    #[inline(never)]
    fn lamb_moments(&self, args: OptimizerStep<'_, Self>, sums: &mut [f64]) -> Result<()> {
        optim::lamb_moments(args, sums)
    }
    #[inline(never)]
    fn lamb_apply(&self, args: OptimizerStep<'_, Self>, sums: &[f64]) -> Result<()> {
        optim::lamb_apply(args, sums)
    }
}

/// Has the ops compiled in this crate, once for each type: what is generic and `inline(never)` is taken from the crate
/// that compiled it. Without this every crate that calls them compiles them anew, and after each change of its own.
macro_rules! compile_here {
    ($($op:ident)*) => {
        /// Where the ops of both types lie; see [`compile_here`].
        #[doc(hidden)]
        pub fn compiled_ops() -> Vec<*const ()> {
            vec![$(<Cpu<f32> as Backend>::$op as *const (), <Cpu<f64> as Backend>::$op as *const ()),*]
        }
    };
}

compile_here! {
    embedding_forward embedding_backward layernorm_forward layernorm_backward linear_forward linear_gelu_forward
    linear_gelu_dgrad linear_dgrad linear_wgrad bias_grad gelu_forward gelu_backward attention_forward
    attention_backward gather_rows scatter_add_rows cross_entropy tanh_forward tanh_backward square_sums root_of_sum
    find_nonfinite clip adamw lamb_moments lamb_apply
}
