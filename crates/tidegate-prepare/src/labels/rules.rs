//! The rules of the analysis, by name, so that a test can switch one off and see that this is caught.

/// Makes the rules, and the list of all of them: none can be left out of it.
macro_rules! rules {
    ($($(#[$meaning:meta])* $rule:ident,)*) => {
        /// One rule of the analysis.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $($(#[$meaning])* $rule,)*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$rule,)*];
        }
    };
}

rules! {
    /// What the catalog does not name is a restricted identifier.
    UnnamedIsIdentifier,
    /// A column of dates is of kind `date`, whatever the catalog says.
    TemporalIsDate,
    /// A column whose kind identifies is restricted, whatever its role.
    KindRestricts,
    /// The row label joins every output.
    RowsJoinColumns,
    /// The condition of a filter decides over rows.
    FilterDecidesRows,
    /// The keys of a join decide over rows.
    JoinKeysDecideRows,
    /// The further condition of a join decides over rows.
    JoinFilterDecidesRows,
    /// What decides over the rows of either side decides over the rows of a join.
    JoinCarriesRows,
    /// The keys of groups decide over rows.
    GroupKeysDecideRows,
    /// All columns of a DISTINCT decide over rows.
    DistinctDecidesRows,
    /// A limit without a total order joins everything.
    LimitJoinsEverything,
    /// A limit over a total order joins what it is ordered by.
    OrderedLimitDecidesRows,
    /// The order of the input reaches what an aggregate or a DISTINCT makes of it.
    OrderReachesAggregates,
    /// An expression that may fail tells by failing.
    FailureDecidesRows,
    /// The conditions of CASE reach its value.
    CaseConditionsJoin,
    /// The filter of an aggregate reaches its value.
    AggregateFilterJoins,
    /// An aggregate that depends on the order of rows joins everything.
    OrderedAggregateJoinsEverything,
    /// Every branch of a union joins: its columns, and where they differ what decides over its rows.
    UnionJoinsBranches,
    /// What decides over the rows of any branch decides over the rows of a union.
    UnionCarriesRows,
    /// A column of a union is a source column only if it is the same in every branch.
    UnionOfOneColumn,
    /// Subqueries in expressions join everything.
    SubqueryJoinsEverything,
    /// Windows join everything.
    WindowJoinsEverything,
    /// Grouping sets join everything.
    GroupingSetJoinsEverything,
    /// Whatever else is not understood joins everything.
    UnknownJoinsEverything,
    /// Only the dataset itself may be read.
    OnlyTheDataset,
    /// Functions must give the same result for the same values.
    VolatileRefused,
    /// Rows that the query brings along must not be output.
    SuppliedRowsRefused,
    /// Nothing lowers under the profile `none`.
    NoneLowersNothing,
    /// Derived codes do not lower.
    DerivedCodesDoNotLower,
    /// A function lowers only a direct reference to one source column.
    DirectReference,
    /// A function lowers only the kind that it was made for.
    KindFits,
    /// Parameters are constants.
    ConstantParameters,
    /// Parameters are inside the profile's bounds.
    ParametersInBounds,
    /// One function for each source column.
    OneFunctionPerColumn,
    /// A personal label is never lowered where nothing can be measured.
    SubjectNeeded,
    /// A column cannot count as quasi-identifier and as sensitive at once.
    RolesStayApart,
    /// A sensitive column decides over no rows.
    SensitiveDecidesNoRows,
    /// A sensitive column leaves unchanged or not at all.
    SensitiveUnchanged,
    /// Free text never leaves, whatever the level.
    TextNeverLeaves,
}

/// Which rules are in force: all, or all but one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rules {
    off: Option<Rule>,
}

impl Rules {
    pub(crate) fn without(rule: Rule) -> Self {
        Self { off: Some(rule) }
    }

    pub(crate) fn on(self, rule: Rule) -> bool {
        self.off != Some(rule)
    }
}
