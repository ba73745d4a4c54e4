//! Areas whose first three ZIP digits may not be told.
//!
//! 45 CFR 164.514(b)(2)(i)(B) allows the first three digits where the area formed by all ZIP codes
//! that begin with them has more than 20,000 people "according to the current publicly available
//! data from the Bureau of the Census", and asks for `000` otherwise. The table joins the areas below
//! that bound in the counts of 2000 (listed in the guidance of the Department of Health and Human
//! Services of 2012), 2010 and 2020, and the prefixes that stand for no civil place (not assigned,
//! military, single offices). An area that is listed without need loses precision and nothing else.

const SPARSE: &[&str] = &[
    // Below 20,001 people in the counts of 2000, 2010 or 2020.
    "036", "059", "063", "102", "202", "203", "204", "205", "369", "556", "692", "753", "772", "790", "821", "823",
    "830", "831", "878", "879", "884", "890", "893", //
    // Not assigned, or without residents.
    "000", "001", "002", "003", "004", "005", "055", "099", "192", "213", "269", "311", "343", "345", "348", "353",
    "375", "398", "399", "419", "428", "429", "459", "509", "517", "518", "519", "529", "533", "536", "552", "555",
    "568", "569", "578", "579", "589", "621", "632", "642", "643", "649", "659", "663", "682", "694", "695", "696",
    "697", "698", "699", "702", "709", "715", "732", "733", "742", "771", "817", "818", "819", "839", "842", "848",
    "849", "854", "858", "861", "862", "866", "867", "868", "869", "872", "876", "885", "886", "887", "888", "889",
    "892", "896", "899", "901", "909", "929", "942", "987", //
    // Military.
    "090", "091", "092", "093", "094", "095", "096", "097", "098", "340", "962", "963", "964", "965", "966",
];

/// Whether the area of these three digits is told as `000`.
pub(super) fn is_sparse(three: &str) -> bool {
    SPARSE.contains(&three)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_what_the_guidance_of_2012_lists() {
        let listed = [
            "036", "059", "063", "102", "203", "556", "692", "790", "821", "823", "830", "831", "878", "879", "884",
            "890", "893",
        ];
        assert!(listed.into_iter().all(is_sparse));
        assert!(!is_sparse("021") && !is_sparse("606"));
    }

    #[test]
    fn every_entry_has_three_digits_and_stands_once() {
        let unique: std::collections::BTreeSet<_> = SPARSE.iter().collect();
        assert_eq!(unique.len(), SPARSE.len());
        assert!(
            SPARSE
                .iter()
                .all(|three| three.len() == 3 && three.bytes().all(|b| b.is_ascii_digit()))
        );
    }
}
