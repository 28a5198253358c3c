;;; Run by the Guix that is evaluated, once for each system: prints its jobs.
;;;
;;; Which jobs there are is for Guix's own 'cuirass-jobs' to say, in (gnu ci). It returns a list when all is done, and
;;; nothing when one package is broken. So its module is not taken compiled but run from its source, which makes its
;;; procedures replaceable: the one that makes a job prints it at once, and those that lower packages return a broken
;;; derivation where they would raise an exception, which becomes a job with an error under the name it would have had.

(define %system (caddr (command-line)))

;; Before (gnu packages) is loaded, which looks there.
(define (add-to-package-path directories)
  (let ((path (getenv "GUIX_PACKAGE_PATH")))
    (setenv "GUIX_PACKAGE_PATH"
            (string-join (append directories (if path (list path) '())) ":"))))

;; Where a channel's checkout has its modules.
(define (module-directory checkout)
  (let ((file (string-append checkout "/.guix-channel")))
    (match (and (file-exists? file)
                (call-with-input-file file read))
      (('channel . (? list? fields))
       (match (assq-ref fields 'directory)
         ((directory) (string-append checkout "/" (string-trim directory #\/)))
         (_ checkout)))
      (_ checkout))))

(define %own-channels?
  ;; Without a Guix of their own, channels are extensions of the one that is installed.
  (not (request 'profile)))

(when %own-channels?
  (add-to-package-path
   (map (lambda (channel) (module-directory (assq-ref channel 'directory)))
        (request 'channels))))


;;; (gnu ci), with procedures of ours in it.

(define ci
  (begin
    (match (search-path %load-path "gnu/ci.scm")
      (#f #f)
      (file (save-module-excursion (lambda () (primitive-load file)))))
    (resolve-module '(gnu ci))))

;; Makes (gnu ci) call what WRAP makes of its procedure NAME, if it has one.
(define (replace-in-ci name wrap)
  (let ((variable (module-variable ci name)))
    (when (and variable (variable-bound? variable))
      (let ((procedure (variable-ref variable)))
        (when (procedure? procedure)
          (module-define! ci name (wrap procedure)))))))

;; Stands for a derivation that there is none of.
(define-record-type <broken>
  (broken message)
  broken?
  (message broken-message))

(define (breakable procedure)
  (lambda arguments
    (guarded (lambda () (apply procedure arguments)) broken)))

(for-each (lambda (name) (replace-in-ci name breakable))
          '(package-derivation package-cross-derivation run-with-store))

(replace-in-ci 'substitutable-derivation?
               (lambda (substitutable-derivation?)
                 (lambda (derivation)
                   (or (broken? derivation)
                       (substitutable-derivation? derivation)))))

;; What cannot be told shows when the package is lowered.
(define (or-else procedure value)
  (lambda arguments
    (guarded (lambda () (apply procedure arguments))
             (lambda (message) value))))

(replace-in-ci 'supported-package? (lambda (supported?) (or-else supported? #t)))
(replace-in-ci 'tunable-package? (lambda (tunable?) (or-else tunable? #f)))

(when %own-channels?
  ;; The profile, which knows the channels of packages, is the installed Guix's.
  (replace-in-ci 'package-channels
                 (lambda (package-channels)
                   (lambda (package)
                     (channels-of (package-file package))))))

(define (package-file package)
  (let ((location ((find-procedure '(guix packages) 'package-location (const #f)) package)))
    (and=> (and=> location
                  (find-procedure '(guix diagnostics) 'location-file (const #f)))
           (lambda (file)
             (or (search-path %load-path file) file)))))

(define (channels-of file)
  (filter-map (lambda (channel)
                (and file
                     (string-prefix? (string-append (assq-ref channel 'directory) "/") file)
                     (find (lambda (candidate)
                             (eq? (channel-name candidate) (assq-ref channel 'name)))
                           %channels)))
              (request 'channels)))


;;; Jobs.

(define %printed (make-hash-table))
(define %number 0)

(define (text name)
  (if (symbol? name) (symbol->string name) name))

(define (print-error name message)
  (set! %number (+ 1 %number))
  (say "~a for ~a: ~a" (text name) %system message)
  (print (cons "job" (text name))
         (cons "system" %system)
         (cons "error" message)))

;; Prints a job as 'cuirass-jobs' has it; returns it.
(define (print-job job)
  (let ((get (lambda (key) (assq-ref job key))))
    (set! %number (+ 1 %number))
    (hashq-set! %printed job #t)
    (print (cons "job" (text (get #:job-name)))
           (cons "system" (get #:system))
           (cons "derivation" (get #:derivation))
           (cons "nix-name" (get #:nix-name))
           (cons "outputs" (get #:outputs))
           (cons "timeout" (or (get #:timeout) 72000))
           (cons "max-silent-time" (or (get #:max-silent-time) 3600)))
    job))

(replace-in-ci 'derivation->job
               (lambda (derivation->job)
                 (lambda (name derivation . rest)
                   (if (broken? derivation)
                       (begin
                         (print-error name (broken-message derivation))
                         #f)
                       (print-job (apply derivation->job name derivation rest))))))

;; Prints what was not printed when it was made: the jobs of modules that make them without (gnu ci).
(define (print-rest jobs)
  (for-each (lambda (job)
              (unless (or (not job) (hashq-ref %printed job))
                (print-job job)))
            jobs))


;;; The request.

(define (request->sexp request)
  (let ((get (lambda (key) (assq-ref request key))))
    `(repository (version 0)
                 (url ,(get 'directory))
                 (branch ,(or (get 'branch) "master"))
                 (commit ,(get 'commit))
                 (name ,(get 'name))
                 ,@(match (get 'introduction)
                     ((commit signer)
                      `((introduction
                         (channel-introduction (version 0)
                                               (commit ,commit)
                                               (signer ,signer)))))
                     (#f '())))))

(define %channel-sexps
  (append (map request->sexp (request 'channels))
          ;; There must be one of this name.
          (if %own-channels?
              '((repository (version 0) (url "/") (branch "master") (commit #f) (name guix)))
              '())))

(define %channels
  (map (find-procedure '(guix channels) 'sexp->channel identity) %channel-sexps))

;; In pieces that can break each for itself, with the names that they have then.
(define %pieces
  (match (request 'subset)
    (('packages . specifications)
     (map (lambda (specification)
            (cons (string-append specification "." %system) `(packages ,specification)))
          specifications))
    (('manifests . files)
     (map (lambda (file) (cons file `(manifests ,file))) files))
    (('custom . modules)
     (map (lambda (module)
            (cons module
                  `(custom ,(call-with-input-string module read))))
          modules))
    (('channels . names)
     `((#f . (channels ,@(map string->symbol names)))))
    (word `((#f . ,word)))))

(define (evaluate store subset)
  (match subset
    (('manifests file)
     (unless (any (lambda (channel)
                    (file-exists? (string-append (assq-ref channel 'directory) "/" file)))
                  (request 'channels))
       (error "no channel has the file" file)))
    (_ #t))
  (print-rest ((module-ref ci 'cuirass-jobs)
               store
               `((subset . ,subset)
                 (systems ,%system)
                 (channels ,@%channel-sexps)))))

(or-fail
 (lambda ()
   (with-store store
     (set-build-options store #:fallback? #t)
     (for-each (match-lambda
                 ((#f . subset)
                  (evaluate store subset))
                 ((name . subset)
                  (guarded (lambda () (evaluate store subset))
                           (lambda (message) (print-error name message)))))
               %pieces)
     ;; What was said for people, before it is not listened to any more.
     (flush-all-ports)
     (print (cons "end" %number))
     ;; The connection keeps the derivations until somebody else does.
     (let wait ()
       (pause)
       (wait)))))
