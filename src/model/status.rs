//! The states of builds, evaluations and jobsets, with the words the bridge uses for them.
//!
//! The numbers are Cuirass's and are written to the database only.

/// Declares an enum with its database number and its word.
macro_rules! status {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal, $word:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum $name { $($(#[$doc])* $variant,)+ }

        #[allow(dead_code, reason = "each status uses what it needs of these")]
        impl $name {
            /// Every value, in the order of its declaration.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),+];

            /// The number in the database.
            pub(crate) fn number(self) -> i64 {
                match self { $(Self::$variant => $number,)+ }
            }

            /// The value of a number from the database.
            pub(crate) fn from_number(number: i64) -> Option<Self> {
                Self::ALL.iter().copied().find(|s| s.number() == number)
            }

            /// The word in answers and on the command line.
            pub(crate) fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The value of a word.
            pub(crate) fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|s| s.word() == word)
            }
        }
    };
}

status! {
    /// How far a build has come.
    BuildStatus {
        /// Given to a remote worker that has not yet said that it began.
        Submitted = -3, "submitted";
        Scheduled = -2, "scheduled";
        Started = -1, "started";
        Succeeded = 0, "succeeded";
        /// The build itself said so, time-outs included.
        Failed = 1, "failed";
        FailedDependency = 2, "failed-dependency";
        /// The infrastructure broke, and the tries are spent.
        Aborted = 3, "aborted";
        Canceled = 4, "canceled";
    }
}

impl BuildStatus {
    /// Whether the build has yet to end.
    pub(crate) fn is_pending(self) -> bool {
        self.number() < 0
    }
}

status! {
    /// A build's ending compared with the one before it of the same job.
    Weather {
        Unknown = -1, "unknown";
        NewSuccess = 0, "new-success";
        NewFailure = 1, "new-failure";
        StillSucceeding = 2, "still-succeeding";
        StillFailing = 3, "still-failing";
    }
}

status! {
    /// How far an evaluation has come.
    EvaluationStatus {
        Started = -1, "started";
        Succeeded = 0, "succeeded";
        Failed = 1, "failed";
        /// Stopped by a crash, a shutdown or a person.
        Aborted = 2, "aborted";
    }
}

status! {
    /// What a jobset's monitor is doing.
    JobsetStatus {
        Inactive = 0, "inactive";
        Idle = 1, "idle";
        Fetching = 2, "fetching";
        Evaluating = 3, "evaluating";
    }
}
