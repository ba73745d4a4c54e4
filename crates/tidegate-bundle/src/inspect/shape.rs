//! Shapes in which only the first axis may count rows.
//!
//! A model that keeps rows on the first axis treats each row alone: the probability of one patient
//! cannot depend on who else is in the batch. It also makes the size of every value known before
//! anything runs.

use crate::onnx::proto::data_type;

/// The element type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    Float,
    Int32,
    Int64,
    Bool,
    /// A class label of a tree ensemble: only ever a graph output, which is cut off.
    Label,
}

impl Element {
    /// The element's number in the ONNX format.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Float => data_type::FLOAT,
            Self::Int32 => data_type::INT32,
            Self::Bool => data_type::BOOL,
            Self::Int64 | Self::Label => data_type::INT64,
        }
    }
}

/// One extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The number of rows.
    Rows,
    /// A fixed number.
    Fixed(usize),
}

/// Extents of a value; `Extent::Rows` stands at most once, first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape(Vec<Extent>);

impl Shape {
    /// A shape, if rows are counted by the first axis alone.
    pub(super) fn new(extents: Vec<Extent>) -> Option<Self> {
        let rows_elsewhere = extents.iter().skip(1).any(|&extent| extent == Extent::Rows);
        (!rows_elsewhere && extents.len() <= 8).then_some(Self(extents))
    }

    /// The shape of a constant.
    pub(super) fn fixed(dims: &[usize]) -> Option<Self> {
        Self::new(dims.iter().copied().map(Extent::Fixed).collect())
    }

    /// `[N, columns]`.
    pub(super) fn rows(columns: usize) -> Self {
        Self(vec![Extent::Rows, Extent::Fixed(columns)])
    }

    /// `[N]`.
    pub(super) fn vector() -> Self {
        Self(vec![Extent::Rows])
    }

    pub(super) fn extents(&self) -> &[Extent] {
        &self.0
    }

    pub(super) fn rank(&self) -> usize {
        self.0.len()
    }

    /// Whether the first axis counts rows.
    pub(super) fn has_rows(&self) -> bool {
        self.0.first() == Some(&Extent::Rows)
    }

    /// Elements for each row (or in all, for a constant); `None` beyond what 64 bits hold.
    pub(super) fn elements(&self) -> Option<u64> {
        self.0.iter().try_fold(1u64, |product, extent| match extent {
            Extent::Rows => Some(product),
            Extent::Fixed(count) => product.checked_mul(*count as u64),
        })
    }

    /// The common shape of an element-wise operation (multidirectional broadcasting of ONNX).
    pub(super) fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let extent = |shape: &Self, axis: usize| match (axis + shape.rank()).checked_sub(rank) {
            Some(position) => shape.0.get(position).copied(),
            None => Some(Extent::Fixed(1)),
        };
        let merged = (0..rank).map(|axis| match (extent(self, axis)?, extent(other, axis)?) {
            (a, b) if a == b => Some(a),
            (Extent::Fixed(1), b) => Some(b),
            (a, Extent::Fixed(1)) => Some(a),
            _ => None,
        });
        Self::new(merged.collect::<Option<_>>()?)
    }

    /// An axis number, which may count from the end, as a position below `rank`.
    pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
        let position = if axis < 0 {
            axis.checked_add(i64::try_from(rank).ok()?)?
        } else {
            axis
        };
        usize::try_from(position).ok().filter(|&position| position < rank)
    }

    /// The shape that `Reshape` gives for a constant list of extents (0 keeps one, -1 is computed).
    pub(super) fn reshape(&self, target: &[i64]) -> Option<Self> {
        let mut extents = Vec::new();
        let mut unknown = None;
        for (position, &extent) in target.iter().enumerate() {
            extents.push(match extent {
                0 => *self.0.get(position)?,
                -1 if unknown.replace(position).is_none() => Extent::Fixed(1),
                1.. => Extent::Fixed(usize::try_from(extent).ok()?),
                _ => return None,
            });
        }
        let fixed = Self(extents.clone()).elements()?;
        let rows_kept = extents.contains(&Extent::Rows) == self.has_rows();
        if let Some(extent) = unknown.and_then(|position| extents.get_mut(position)) {
            let elements = self.elements()?;
            if fixed == 0 || elements % fixed != 0 {
                return None;
            }
            let rest = usize::try_from(elements / fixed).ok()?;
            *extent = match (rows_kept, rest) {
                (true, rest) => Extent::Fixed(rest),
                (false, 1) => Extent::Rows,
                (false, _) => return None,
            };
        } else if !rows_kept || self.elements() != Some(fixed) {
            return None;
        }
        Self::new(extents)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_never_leave_the_first_axis() {
        let rows = Shape::rows(3);
        assert_eq!(rows.broadcast(&Shape::fixed(&[1, 3]).unwrap()), Some(Shape::rows(3)));
        assert_eq!(rows.broadcast(&Shape::fixed(&[3]).unwrap()), Some(Shape::rows(3)));
        assert_eq!(
            Shape::rows(1).broadcast(&Shape::fixed(&[4]).unwrap()),
            Some(Shape::rows(4))
        );
        assert_eq!(rows.broadcast(&Shape::vector()), None);
        assert_eq!(rows.broadcast(&Shape::fixed(&[2, 3]).unwrap()), None);
        assert_eq!(rows.broadcast(&Shape::fixed(&[1, 1, 3]).unwrap()), None);
    }

    #[test]
    fn reshape_keeps_rows_apart() {
        let rows = Shape::rows(6);
        assert_eq!(rows.reshape(&[-1, 6]), Some(Shape::rows(6)));
        assert_eq!(rows.reshape(&[0, -1]), Some(Shape::rows(6)));
        assert_eq!(rows.reshape(&[0, 2, 3]).unwrap().elements(), Some(6));
        assert_eq!(Shape::rows(1).reshape(&[-1]), Some(Shape::vector()));
        for target in [&[-1][..], &[-1, 3], &[6, -1], &[0, 5], &[-1, -1], &[0, 0, 0], &[-2, 6]] {
            assert_eq!(rows.reshape(target), None, "{target:?}");
        }
    }
}
