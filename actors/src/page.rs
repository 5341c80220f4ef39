//! Pages of lists.

/// Cuts a list of which one more than `limit` was looked for to a page. Tells where the next one begins: after the last
/// of this one, if there is more.
pub(crate) fn cut<T, K>(items: &mut Vec<T>, limit: usize, key: impl FnOnce(&T) -> K) -> Option<K> {
    let is_more = items.len() > limit;
    items.truncate(limit);
    items.last().filter(|_| is_more).map(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_page_begins_after_the_last_of_this_one_if_there_is_one() {
        for (found, page, next) in
            [(0, 0, None), (1, 1, None), (2, 2, None), (3, 2, Some(1)), (9, 2, Some(1))]
        {
            let mut items: Vec<i32> = (0..found).collect();
            assert_eq!(cut(&mut items, 2, |last| *last), next);
            assert_eq!(items.len(), page);
        }
    }
}
