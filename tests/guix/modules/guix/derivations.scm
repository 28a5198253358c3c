;;; A stand-in: derivations of Nix.

(define-module (guix derivations)
  #:use-module (ice-9 format)
  #:use-module (ice-9 popen)
  #:use-module (ice-9 textual-ports)
  #:use-module (json)
  #:use-module (srfi srfi-9)
  #:export (nix-derivation
            derivation-file-name derivation-name derivation-system
            derivation->output-paths derivation-inputs substitutable-derivation?))

(define-record-type <derivation>
  (make-derivation file-name name system output)
  derivation?
  (file-name derivation-file-name)
  (name derivation-name)
  (system derivation-system)
  (output derivation-output))

(define (derivation->output-paths derivation)
  (list (cons "out" (derivation-output derivation))))

(define (derivation-inputs derivation)
  '())

(define (substitutable-derivation? derivation)
  (derivation-file-name derivation)
  #t)

;; One whose builder is a shell script.
(define (nix-derivation name system script)
  (let* ((expression (format #f "let d = derivation { name = ~s; system = ~s; builder = \"/bin/sh\"; \
PATH = \"/usr/bin:/bin\"; args = [ \"-c\" ''~a'' ]; }; in [ d.drvPath d.outPath ]" name system script))
         (pipe (open-pipe* OPEN_READ "nix-instantiate" "--eval" "--strict" "--json" "--read-write-mode"
                           "--expr" expression))
         (text (get-string-all pipe)))
    (unless (zero? (close-pipe pipe))
      (error "nix-instantiate failed for" name))
    (let ((paths (json-string->scm text)))
      (make-derivation (vector-ref paths 0) name system (vector-ref paths 1)))))
