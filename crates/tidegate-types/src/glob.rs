//! Names with signs that stand for others.

/// Whether `name` fits `pattern`, in which `*` stands for any text and `?` for one character.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // `reached[j]`: the pattern so far fits the first `j` characters.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for wanted in pattern {
        let mut next = vec![false; name.len() + 1];
        if wanted == '*' {
            let mut any = false;
            for (to, from) in next.iter_mut().zip(&reached) {
                any |= from;
                *to = any;
            }
        } else {
            for ((to, from), found) in next.iter_mut().skip(1).zip(&reached).zip(&name) {
                *to = *from && (wanted == '?' || wanted == *found);
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}
