;;; A stand-in: places of packages; as in Guix, accessors are no procedures but syntax.

(define-module (guix diagnostics)
  #:use-module (srfi srfi-9)
  #:export (location location-file))

(define-record-type <location>
  (location file)
  location?
  (file location-file))
