//! Tree ensembles of `ai.onnx.ml`, checked node by node.
//!
//! A number that is wrong could lead out of a tree or in a circle, and other programs follow it without
//! asking. Every number is therefore checked here, and trees are written again in order; [`crate::trees`]
//! evaluates the same form.

use std::collections::BTreeMap;

use crate::onnx::proto::{AttributeProto, NodeProto, attribute_type};

use super::attribute::Attributes;

/// The mode of a leaf.
const LEAF: &[u8] = b"LEAF";
/// The most tree nodes.
const MAX_TREE_NODES: usize = 1_000_000;

/// What a branch asks of its feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    LessOrEqual,
    Less,
    Greater,
    Equal,
    NotEqual,
}

impl Test {
    const ALL: [Self; 5] = [
        Self::LessOrEqual,
        Self::Less,
        Self::Greater,
        Self::Equal,
        Self::NotEqual,
    ];

    const fn mode(self) -> &'static [u8] {
        match self {
            Self::LessOrEqual => b"BRANCH_LEQ",
            Self::Less => b"BRANCH_LT",
            Self::Greater => b"BRANCH_GT",
            Self::Equal => b"BRANCH_EQ",
            Self::NotEqual => b"BRANCH_NEQ",
        }
    }

    /// Whether the branch is taken for a value that is not missing.
    pub(crate) fn holds(self, given: f32, value: f32) -> bool {
        match self {
            Self::LessOrEqual => given <= value,
            Self::Less => given < value,
            Self::Greater => given > value,
            Self::Equal => given == value,
            Self::NotEqual => given != value,
        }
    }
}

/// What makes probabilities of the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transform {
    /// The sums are the probabilities of both classes.
    None,
    /// One sum, through the logistic curve, is the probability of the second class.
    Logistic,
    /// Two sums through softmax.
    Softmax,
}

impl Transform {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::None => b"NONE",
            Self::Logistic => b"LOGISTIC",
            Self::Softmax => b"SOFTMAX",
        }
    }
}

/// A branch, or a leaf when it tests nothing. Children are numbers in the same tree.
#[derive(Debug)]
pub(crate) struct TreeNode {
    pub(crate) test: Option<Test>,
    pub(crate) true_child: i64,
    pub(crate) false_child: i64,
    pub(crate) feature: i64,
    pub(crate) value: f32,
    pub(crate) missing_is_true: i64,
    /// What a leaf adds: the class and the weight.
    pub(crate) leaves: Vec<(i64, f32)>,
}

/// A `TreeEnsembleClassifier` with two classes that was checked.
#[derive(Debug)]
pub(crate) struct Ensemble {
    pub(crate) trees: Vec<Vec<TreeNode>>,
    pub(crate) transform: Transform,
    /// A number for each sum, or none.
    pub(crate) base: Vec<f32>,
    labels: AttributeProto,
}

impl Ensemble {
    /// Checks an ensemble over `features` columns.
    pub(super) fn read(attributes: &Attributes, features: usize) -> Result<Self, &'static str> {
        let trees = read_trees(attributes)?;
        for tree in &trees {
            check_tree(tree, features)?;
        }
        let (labels, label_attribute) = match (
            attributes.integers("classlabels_int64s"),
            attributes.texts("classlabels_strings"),
        ) {
            (Some(labels), None) => (labels.len(), integers("classlabels_int64s", labels.to_vec())),
            (None, Some(labels)) => (labels.len(), texts("classlabels_strings", labels.to_vec())),
            _ => return Err("it must have class labels of one kind"),
        };
        if labels != 2 {
            return Err("it must have two classes");
        }
        let single_score = trees
            .iter()
            .flatten()
            .flat_map(|node| &node.leaves)
            .all(|&(class, _)| class == 0);
        let base = attributes.floats("base_values").unwrap_or_default();
        let transform = attributes.text("post_transform").unwrap_or(b"NONE");
        let transform = match (single_score, transform, base.len()) {
            (true, b"LOGISTIC", 0 | 1) => Transform::Logistic,
            (false, b"NONE", 0 | 2) => Transform::None,
            (false, b"SOFTMAX", 0 | 2) => Transform::Softmax,
            _ => return Err("this combination of class ids, `post_transform` and `base_values` is not supported"),
        };
        Ok(Self {
            trees,
            transform,
            base: base.to_vec(),
            labels: label_attribute,
        })
    }

    /// Reads an ensemble of a model that was inspected.
    pub(crate) fn of(node: NodeProto) -> Result<Self, &'static str> {
        let attributes = Attributes::read(node.attribute).map_err(|_| "its attributes are refused")?;
        Self::read(&attributes, usize::MAX)
    }

    /// The most steps of one row: the longest way down each tree, and the weights at its end.
    pub(super) fn row_steps(&self) -> u64 {
        let trees = self.trees.iter().map(|tree| {
            let mut below = vec![0_u64; tree.len()];
            // Children come after their parent.
            for (position, node) in tree.iter().enumerate().rev() {
                let child = |number| {
                    usize::try_from(number)
                        .ok()
                        .and_then(|at: usize| below.get(at).copied())
                };
                let children = [child(node.true_child), child(node.false_child)];
                let work = match node.test {
                    None => node.leaves.len() as u64,
                    Some(_) => children.into_iter().flatten().max().unwrap_or_default(),
                };
                if let Some(entry) = below.get_mut(position) {
                    *entry = work.saturating_add(1);
                }
            }
            below.first().copied().unwrap_or_default()
        });
        trees.fold(0, u64::saturating_add)
    }

    /// The attributes, written again in order.
    pub(super) fn into_attributes(self) -> Vec<AttributeProto> {
        let mut written = write_trees(&self.trees);
        written.push(self.labels);
        written.push(AttributeProto {
            name: Some("post_transform".to_owned()),
            s: Some(self.transform.name().to_vec()),
            r#type: Some(attribute_type::STRING),
            ..AttributeProto::default()
        });
        if !self.base.is_empty() {
            written.push(floats("base_values", self.base));
        }
        written
    }
}

fn read_trees(attributes: &Attributes) -> Result<Vec<Vec<TreeNode>>, &'static str> {
    let nodes = attributes
        .integers("nodes_nodeids")
        .ok_or("`nodes_nodeids` is missing")?;
    let count = nodes.len();
    if count == 0 || count > MAX_TREE_NODES {
        return Err("it must have 1 to 1,000,000 tree nodes");
    }
    let column = |name: &str| {
        attributes
            .integers(name)
            .filter(|values| values.len() == count)
            .ok_or("`nodes_…` differ in length")
    };
    let trees = column("nodes_treeids")?;
    let features = column("nodes_featureids")?;
    let true_children = column("nodes_truenodeids")?;
    let false_children = column("nodes_falsenodeids")?;
    let values = attributes
        .floats("nodes_values")
        .filter(|values| values.len() == count)
        .ok_or("`nodes_values` is missing or short")?;
    let modes = attributes
        .texts("nodes_modes")
        .filter(|modes| modes.len() == count)
        .ok_or("`nodes_modes` is missing or short")?;
    let missing = match attributes.integers("nodes_missing_value_tracks_true") {
        None => vec![0; count],
        Some(flags) if flags.len() == count && flags.iter().all(|flag| (0..=1).contains(flag)) => flags.to_vec(),
        Some(_) => return Err("`nodes_missing_value_tracks_true` must hold 0 or 1 for each node"),
    };

    let mut ordered = BTreeMap::new();
    for ((((&tree, &node), &feature), (&true_child, &false_child)), ((&value, mode), &missing_is_true)) in trees
        .iter()
        .zip(nodes)
        .zip(features)
        .zip(true_children.iter().zip(false_children))
        .zip(values.iter().zip(modes).zip(&missing))
    {
        let test = Test::ALL.into_iter().find(|test| test.mode() == mode.as_slice());
        if test.is_none() && mode != LEAF {
            return Err("a tree node has a mode that is not supported");
        }
        let entry = TreeNode {
            test,
            true_child,
            false_child,
            feature,
            value,
            missing_is_true,
            leaves: vec![],
        };
        if ordered.insert((tree, node), entry).is_some() {
            return Err("a tree node stands twice");
        }
    }

    let class_nodes = attributes
        .integers("class_nodeids")
        .ok_or("`class_nodeids` is missing")?;
    let class = |name: &str| {
        attributes
            .integers(name)
            .filter(|values| values.len() == class_nodes.len())
            .ok_or("`class_…` differ in length")
    };
    let (class_trees, classes) = (class("class_treeids")?, class("class_ids")?);
    let weights = attributes
        .floats("class_weights")
        .filter(|weights| weights.len() == class_nodes.len());
    let weights = weights.ok_or("`class_weights` is missing or short")?;
    for (((tree, node), &class), &weight) in class_trees.iter().zip(class_nodes).zip(classes).zip(weights) {
        let entry = ordered
            .get_mut(&(*tree, *node))
            .ok_or("a leaf's weight names an unknown tree node")?;
        entry.leaves.push((class, weight));
    }

    let mut grouped: Vec<Vec<TreeNode>> = Vec::new();
    for ((tree, node), entry) in ordered {
        if node == 0 && tree == grouped.len() as i64 {
            grouped.push(vec![]);
        }
        let last = grouped.len() as i64 - 1;
        match grouped.last_mut() {
            Some(nodes) if last == tree && nodes.len() as i64 == node => nodes.push(entry),
            _ => return Err("trees and their nodes must be numbered from 0 without gaps"),
        }
    }
    Ok(grouped)
}

fn check_tree(tree: &[TreeNode], features: usize) -> Result<(), &'static str> {
    let count = tree.len() as i64;
    for (position, node) in tree.iter().enumerate() {
        if node.test.is_none() {
            if node.leaves.is_empty() || node.leaves.iter().any(|(class, _)| !(0..=1).contains(class)) {
                return Err("each leaf must have a weight for class 0 or 1");
            }
            continue;
        }
        if !node.leaves.is_empty() {
            return Err("a branch has a leaf's weight");
        }
        if usize::try_from(node.feature).map_or(true, |feature| feature >= features) {
            return Err("a tree node reads a feature that the input does not have");
        }
        // Children after their parent: no path can loop.
        if [node.true_child, node.false_child]
            .iter()
            .any(|&child| child <= position as i64 || child >= count)
        {
            return Err("a branch must lead to later nodes of its own tree");
        }
    }
    Ok(())
}

fn write_trees(trees: &[Vec<TreeNode>]) -> Vec<AttributeProto> {
    let nodes = || {
        trees
            .iter()
            .enumerate()
            .flat_map(|(t, tree)| tree.iter().enumerate().map(move |(n, node)| (t as i64, n as i64, node)))
    };
    let leaves =
        || nodes().flat_map(|(t, n, node)| node.leaves.iter().map(move |&(class, weight)| (t, n, class, weight)));
    vec![
        integers("nodes_treeids", nodes().map(|(tree, _, _)| tree).collect()),
        integers("nodes_nodeids", nodes().map(|(_, node, _)| node).collect()),
        integers(
            "nodes_featureids",
            nodes()
                .map(|(_, _, node)| if node.test.is_none() { 0 } else { node.feature })
                .collect(),
        ),
        integers(
            "nodes_truenodeids",
            nodes()
                .map(|(_, _, node)| if node.test.is_none() { 0 } else { node.true_child })
                .collect(),
        ),
        integers(
            "nodes_falsenodeids",
            nodes()
                .map(|(_, _, node)| if node.test.is_none() { 0 } else { node.false_child })
                .collect(),
        ),
        integers(
            "nodes_missing_value_tracks_true",
            nodes().map(|(_, _, node)| node.missing_is_true).collect(),
        ),
        floats("nodes_values", nodes().map(|(_, _, node)| node.value).collect()),
        texts(
            "nodes_modes",
            nodes()
                .map(|(_, _, node)| node.test.map_or(LEAF, Test::mode).to_vec())
                .collect(),
        ),
        integers("class_treeids", leaves().map(|(tree, ..)| tree).collect()),
        integers("class_nodeids", leaves().map(|(_, node, ..)| node).collect()),
        integers("class_ids", leaves().map(|(_, _, class, _)| class).collect()),
        floats("class_weights", leaves().map(|(.., weight)| weight).collect()),
    ]
}

fn integers(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints,
        r#type: Some(attribute_type::INTS),
        ..AttributeProto::default()
    }
}

fn floats(name: &str, floats: Vec<f32>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        floats,
        r#type: Some(attribute_type::FLOATS),
        ..AttributeProto::default()
    }
}

fn texts(name: &str, strings: Vec<Vec<u8>>) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        strings,
        r#type: Some(attribute_type::STRINGS),
        ..AttributeProto::default()
    }
}
