//! The matrix products of a model: `x·Wᵀ` and `dy·W` of every frozen linear layer and every expert,
//! as training calls them: activations are bf16 where weights are, and workers stay awake. Each takes
//! all rows, whereas in a step those of a token's experts do.
//!
//! All layers are gone through one after another, so that a weight comes from memory as it does in
//! a step, not from a cache that holds it since the last repetition.

use std::{collections::BTreeMap, time::Instant};

use candle_core::{DType, Device, Tensor};
use lowrank_autograd::{Awake, Gradients, Key, Parameter, Value, Weight, ops};
use lowrank_models::Model;
use lowrank_peft::layers::Layer;
use serde::Serialize;

use super::median;

/// Times of all linear layers.
#[derive(Debug, Serialize)]
pub(super) struct Products {
    rows: usize,
    shapes: Vec<Shape>,
}

/// Times of the layers of one shape; one entry for each pass over the model, the sum of all layers
/// of that shape.
#[derive(Debug, Serialize)]
struct Shape {
    out: usize,
    input: usize,
    count: usize,
    forward_seconds: Vec<f64>,
    gradient_seconds: Vec<f64>,
}

impl Products {
    /// Goes over the model once uncounted and `passes` times with the clock running.
    pub(super) fn measure(model: &Model, rows: usize, passes: usize) -> anyhow::Result<Self> {
        let weights = matrices(model)?;
        let _awake = Awake::begin();
        let mut shapes: BTreeMap<Vec<usize>, (Operands, Shape)> = BTreeMap::new();
        for weight in &weights {
            let &[out, input] = weight.dims() else { continue };
            match shapes.get_mut(weight.dims()) {
                Some((_, shape)) => shape.count += 1,
                None => {
                    let half = weight.dtype() == DType::BF16;
                    let dtype = if half { DType::BF16 } else { DType::F32 };
                    let entry = (Operands::new(rows, [out, input], dtype)?, Shape::new(out, input));
                    shapes.insert(weight.dims().to_vec(), entry);
                }
            }
        }
        for pass in 0..=passes {
            for (_, shape) in shapes.values_mut() {
                shape.begin(pass);
            }
            for weight in &weights {
                let Some((operands, shape)) = shapes.get_mut(weight.dims()) else { continue };
                let (forward, gradient) = operands.time(weight)?;
                shape.add(forward, gradient);
            }
        }
        Ok(Self { rows, shapes: shapes.into_values().map(|(_, shape)| shape).collect() })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<21} {:>6} {:>6} {:>6} {:>8} {:>9} {:>8} GFLOP/s",
            format!("products, {} rows", self.rows),
            "out",
            "in",
            "count",
            "forward",
            "gradient",
            "both"
        )];
        let (mut all, mut forward, mut gradient) = (0.0, 0.0, 0.0);
        for shape in &self.shapes {
            let work = shape.work(self.rows);
            let times = [median(&shape.forward_seconds), median(&shape.gradient_seconds)];
            let rates = times.map(|t| work / t / 1e9);
            lines.push(format!(
                "{:>28} {:>6} {:>6} {:>8.0} {:>9.0}",
                shape.out, shape.input, shape.count, rates[0], rates[1]
            ));
            (all, forward, gradient) = (all + work, forward + times[0], gradient + times[1]);
        }
        let rates = [all / forward / 1e9, all / gradient / 1e9];
        let both = 2.0 * all / (forward + gradient) / 1e9;
        lines.push(format!("{:>42} {:>8.0} {:>9.0} {both:>8.0}", "all", rates[0], rates[1]));
        lines
    }
}

/// The weights of all linear layers, and each expert's by itself.
fn matrices(model: &Model) -> anyhow::Result<Vec<Weight>> {
    let mut found = Vec::new();
    for (_, layer) in model.modules.layers() {
        match layer {
            Layer::Linear(linear) => found.push(linear.weight().weight()),
            Layer::Stack(stack) => {
                let ([experts, out, _], all) = (stack.dims(), stack.weight().weight());
                for expert in 0..experts {
                    found.push(all.rows(expert * out..(expert + 1) * out)?);
                }
            }
            Layer::Embedding(_) | Layer::Norm(_) | Layer::Bare(_) => {}
        }
    }
    Ok(found)
}

impl Shape {
    fn new(out: usize, input: usize) -> Self {
        let (forward_seconds, gradient_seconds) = (Vec::new(), Vec::new());
        Self { out, input, count: 1, forward_seconds, gradient_seconds }
    }

    /// The first pass (0) makes room for its successor's times instead of keeping its own.
    fn begin(&mut self, pass: usize) {
        for seconds in [&mut self.forward_seconds, &mut self.gradient_seconds] {
            if pass == 1 {
                seconds.clear();
            }
            seconds.push(0.0);
        }
    }

    fn add(&mut self, forward: f64, gradient: f64) {
        for (seconds, more) in
            [(&mut self.forward_seconds, forward), (&mut self.gradient_seconds, gradient)]
        {
            if let Some(last) = seconds.last_mut() {
                *last += more;
            }
        }
    }

    /// Floating-point operations of one direction through all layers of the shape.
    fn work(&self, rows: usize) -> f64 {
        2.0 * (self.count * rows) as f64 * self.out as f64 * self.input as f64
    }
}

/// What a layer of one shape is multiplied with.
struct Operands {
    x: Tensor,
    dy: Tensor,
    /// Stands for whatever trains below the layer, so that the tape asks for the input's gradient.
    below: Parameter,
}

impl Operands {
    fn new(rows: usize, [out, input]: [usize; 2], dtype: DType) -> anyhow::Result<Self> {
        // A prime number of them, over and over: no two rows alike.
        let noise = Key::new(42).normals(8191);
        let matrix = |columns: usize| {
            let elements = noise.iter().copied().cycle().take(rows * columns).collect();
            Tensor::from_vec(elements, (rows, columns), &Device::Cpu)?.to_dtype(dtype)
        };
        let below = Parameter::new("below", &Tensor::new(0f32, &Device::Cpu)?)?;
        Ok(Self { x: matrix(input)?, dy: matrix(out)?, below })
    }

    /// Seconds of the forward product and of the input's gradient.
    fn time(&self, weight: &Weight) -> anyhow::Result<(f64, f64)> {
        // Between these two operations, which cost nothing, the tape holds the layer alone.
        let x =
            Value::record("input", self.x.clone(), [&self.below.value(true)], |_| |_| Ok([None]));
        let begun = Instant::now();
        let y = ops::linear(&x, ops::Matrix::Frozen(weight), None, Vec::new())?;
        let forward = begun.elapsed().as_secs_f64();
        let dy = self.dy.clone();
        let end = Value::record("end", Tensor::new(0f32, &Device::Cpu)?, [&y], |_| {
            move |_| Ok([Some(dy)])
        });
        drop(y);
        let begun = Instant::now();
        end.backward(1.0, &mut Gradients::new())?;
        Ok((forward, begun.elapsed().as_secs_f64()))
    }
}
