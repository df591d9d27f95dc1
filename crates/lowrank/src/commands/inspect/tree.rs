//! The modules as a tree; blocks that are alike are drawn once, as `(0-29)`.

use owo_colors::OwoColorize as _;

use super::{Row, Shown};

/// A module with what is in it.
struct Node<'a> {
    name: String,
    layer: Option<&'a Shown>,
    children: Vec<Node<'a>>,
    /// Modules that this one stands for.
    times: usize,
}

/// One line of the drawing: the tree's part, and what is said about a layer.
struct Line {
    tree: String,
    cells: Option<[String; 4]>,
    remark: String,
}

/// Draws the modules, with those that train in colour if that is wanted.
pub(super) fn draw(rows: &[Row<'_>], colour: bool) -> String {
    let mut root = Node { name: String::new(), layer: None, children: Vec::new(), times: 1 };
    for row in rows {
        let mut node = &mut root;
        for part in row.path.split('.') {
            node = node.child(part);
        }
        node.layer = row.layer.as_ref();
    }
    root.collapse();
    let mut lines = Vec::new();
    root.lines("", 1, &mut lines);
    let width = |text: &str| text.chars().count();
    let tree = lines.iter().map(|l| width(&l.tree)).max().unwrap_or_default();
    let mut columns = [0; 4];
    for cells in lines.iter().filter_map(|l| l.cells.as_ref()) {
        for (column, cell) in columns.iter_mut().zip(cells) {
            *column = (*column).max(width(cell));
        }
    }
    let [kind, shape, dtype, count] = columns;
    let drawn = lines.iter().map(|line| {
        let Some([k, s, d, n]) = &line.cells else { return line.tree.clone() };
        let text = format!(
            "{:tree$}  {k:kind$}  {s:shape$}  {d:dtype$}  {n:>count$}{}",
            line.tree, line.remark
        );
        let text = text.trim_end().to_owned();
        if colour && !line.remark.is_empty() { text.green().to_string() } else { text }
    });
    drawn.collect::<Vec<_>>().join("\n")
}

impl<'a> Node<'a> {
    fn child(&mut self, name: &str) -> &mut Self {
        let at = self.children.iter().position(|c| c.name == name).unwrap_or_else(|| {
            let (name, children) = (name.to_owned(), Vec::new());
            self.children.push(Node { name, layer: None, children, times: 1 });
            self.children.len() - 1
        });
        &mut self.children[at]
    }

    /// Makes one of neighbours that only differ by their number.
    fn collapse(&mut self) {
        self.children.iter_mut().for_each(Node::collapse);
        let mut kept: Vec<(Node<'a>, String)> = Vec::with_capacity(self.children.len());
        for node in self.children.drain(..) {
            let is_number = node.name.chars().all(|c| c.is_ascii_digit());
            let looks = if is_number { node.looks() } else { String::new() };
            match kept.last_mut() {
                Some((first, same)) if is_number && *same == looks => {
                    let begin = first.name.trim_start_matches('(').split('-').next();
                    first.name = format!("({}-{})", begin.unwrap_or_default(), node.name);
                    first.times += 1;
                }
                _ => kept.push((node, looks)),
            }
        }
        self.children = kept.into_iter().map(|(node, _)| node).collect();
    }

    /// All that is shown of a module, but for its own name.
    fn looks(&self) -> String {
        let own = self.layer.map(|l| format!("{:?}{}", cells(l, 1), remark(l))).unwrap_or_default();
        let below = self.children.iter().map(|c| format!("{}:{}", c.name, c.looks()));
        format!("{own}{{{}}}", below.collect::<Vec<_>>().join(","))
    }

    fn lines(&self, indent: &str, times: usize, lines: &mut Vec<Line>) {
        let count = self.children.len();
        for (i, child) in self.children.iter().enumerate() {
            let is_last = i + 1 == count;
            let (branch, below) = match (indent.is_empty() && self.name.is_empty(), is_last) {
                (true, _) => ("", ""),
                (false, false) => ("├─ ", "│  "),
                (false, true) => ("└─ ", "   "),
            };
            // `layers.(0-4)` takes one line, not two.
            let (name, shown) = match child.children.as_slice() {
                [only] if child.layer.is_none() && only.times > 1 => {
                    (format!("{}.{}", child.name, only.name), only)
                }
                _ => (child.name.clone(), child),
            };
            let times =
                times * child.times * if std::ptr::eq(shown, child) { 1 } else { shown.times };
            lines.push(Line {
                tree: format!("{indent}{branch}{name}"),
                cells: shown.layer.map(|layer| cells(layer, times)),
                remark: shown.layer.map(remark).unwrap_or_default(),
            });
            let indent = match below {
                "" => "  ".to_owned(),
                _ => format!("{indent}{below}"),
            };
            shown.lines(&indent, times, lines);
        }
    }
}

fn cells(layer: &Shown, times: usize) -> [String; 4] {
    let shape: Vec<String> = layer.shape.iter().map(usize::to_string).collect();
    let bias = if layer.bias && layer.kind != "LayerNorm" { " + bias" } else { "" };
    let times = if times > 1 { format!("{times} × ") } else { String::new() };
    [
        layer.kind.to_owned(),
        format!("[{}]{bias}", shape.join(", ")),
        layer.dtype.to_owned(),
        format!("{times}{}", layer.parameters),
    ]
}

fn remark(layer: &Shown) -> String {
    let lora = layer.lora.map(|lora| format!("  LoRA r={} ×{}", lora.r, lora.scaling));
    let trained = layer.trained.then(|| "  trained whole".to_owned());
    let tied = layer.tied_to.as_ref().map(|tied| format!("  tied to {tied}"));
    [lora, trained, tied].into_iter().flatten().collect()
}
