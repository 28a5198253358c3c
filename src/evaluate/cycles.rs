//! Cycles of a directed graph: Tarjan's strongly connected components, without recursion, so that a chain of
//! a hundred thousand jobs does not need a stack of that depth.

/// The components that hold a cycle: of more than one node, or of one that points to itself. `graph[n]` are the
/// nodes that `n` points to.
pub(crate) fn find(graph: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut search = Search {
        graph,
        order: vec![UNSEEN; graph.len()],
        low: vec![0; graph.len()],
        on_stack: vec![false; graph.len()],
        stack: Vec::new(),
        next: 0,
        found: Vec::new(),
    };
    for node in 0..graph.len() {
        if search.order[node] == UNSEEN {
            search.from(node);
        }
    }
    search.found
}

/// The order of a node not yet visited: more than there can be nodes.
const UNSEEN: usize = usize::MAX;

struct Search<'a> {
    graph: &'a [Vec<usize>],
    /// When a node was first visited.
    order: Vec<usize>,
    /// The earliest node on the stack that can be reached from it.
    low: Vec<usize>,
    on_stack: Vec<bool>,
    stack: Vec<usize>,
    next: usize,
    found: Vec<Vec<usize>>,
}

impl Search<'_> {
    fn from(&mut self, root: usize) {
        self.enter(root);
        // The path from the root, each node with the number of its edges already followed.
        let mut path = vec![(root, 0)];
        while let Some(top) = path.last_mut() {
            let node = top.0;
            if let Some(&next) = self.graph[node].get(top.1) {
                top.1 += 1;
                if self.order[next] == UNSEEN {
                    self.enter(next);
                    path.push((next, 0));
                } else if self.on_stack[next] {
                    self.low[node] = self.low[node].min(self.order[next]);
                }
                continue;
            }
            path.pop();
            if let Some(&(parent, _)) = path.last() {
                self.low[parent] = self.low[parent].min(self.low[node]);
            }
            if self.low[node] == self.order[node] {
                self.leave(node);
            }
        }
    }

    fn enter(&mut self, node: usize) {
        (self.order[node], self.low[node]) = (self.next, self.next);
        self.next += 1;
        self.stack.push(node);
        self.on_stack[node] = true;
    }

    /// `node` is the first of a component: take it off the stack.
    fn leave(&mut self, node: usize) {
        let start = self.stack.iter().rposition(|&n| n == node).unwrap_or(0);
        let component = self.stack.split_off(start);
        for &member in &component {
            self.on_stack[member] = false;
        }
        if component.len() > 1 || self.graph[node].contains(&node) {
            self.found.push(component);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(graph: &[Vec<usize>]) -> Vec<Vec<usize>> {
        let mut found = find(graph);
        found.iter_mut().for_each(|component| component.sort_unstable());
        found.sort();
        found
    }

    #[test]
    fn cycles_are_found_and_what_only_leads_there_is_not() {
        let graph = [vec![1], vec![2], vec![1, 3], vec![3], vec![0, 5], vec![]];
        assert_eq!(sorted(&graph), [vec![1, 2], vec![3]]);
        assert!(find(&[vec![1], vec![2], vec![]]).is_empty());
    }

    #[test]
    fn long_chains_need_no_deep_stack() {
        let length = 200_000;
        let mut graph: Vec<_> = (0..length).map(|n| vec![n + 1]).collect();
        graph.push(vec![]);
        assert!(find(&graph).is_empty());
        graph[length].push(0);
        assert_eq!(find(&graph)[0].len(), length + 1);
    }
}
